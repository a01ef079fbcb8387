#!/usr/bin/env bash
# demo.sh [ARGUMENT...]: prepare .venv and show blockgate at work, until Ctrl-C. Arguments are those of `blockgate demo`.
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/venv.sh all
exec .venv/bin/blockgate demo "$@"
