#!/usr/bin/env bash
# lock.sh [ARGUMENT...]: choose the versions in requirements/test.lock anew: one set for every supported Python.
# Versions already there stay unless --upgrade or --upgrade-package NAME is given.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/machine.sh

uv=$(command -v uv || true)
if [ -z "$uv" ]; then
  scripts/venv.sh test
  quietly .venv/bin/python -m pip install --disable-pip-version-check --no-input uv || die "pip could not install uv"
  uv=.venv/bin/uv
fi
# The lock names packages and versions, and nowhere where they come from.
"$uv" pip compile --quiet --universal --python-version 3.11 --all-extras \
  --no-emit-index-url --no-emit-find-links --custom-compile-command 'make lock' \
  --output-file requirements/test.lock "$@" pyproject.toml
