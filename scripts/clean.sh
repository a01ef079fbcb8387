#!/usr/bin/env bash
# clean.sh: remove what make and the tools left in this folder.
set -euo pipefail
cd "$(dirname "$0")/.."
rm -rf .venv .demo .test-cache .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis dist build
find . -name .git -prune -o -type d -name __pycache__ -exec rm -rf {} +
