#!/usr/bin/env bash
# test.sh [ARGUMENT...]: prepare .venv and the Debian packages that tests use, and run pytest. Arguments are pytest's.
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/test-packages.sh
scripts/venv.sh test
# A file's tests share its servers: one worker runs them all.
exec .venv/bin/python -m pytest -n 2 --dist loadfile "$@"
