#!/usr/bin/env bash
# bench.sh [ARGUMENT...]: measure. Arguments are those of benchmarks/.
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/test-packages.sh
scripts/venv.sh test
exec .venv/bin/python -m benchmarks "$@"
