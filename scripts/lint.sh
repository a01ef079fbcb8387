#!/usr/bin/env bash
# lint.sh: style, types, import layers, scripts and the checked-in OpenAPI document. Runs every check, then fails if one failed.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/machine.sh
scripts/venv.sh test
command -v shellcheck >/dev/null || die "the program shellcheck is missing: install the Debian package shellcheck"

failed=()
check() {
  say "$*"
  "$@" || failed+=("$*")
}

check .venv/bin/ruff check --output-format concise .
check .venv/bin/ruff format --check .
check .venv/bin/mypy
check .venv/bin/lint-imports
check .venv/bin/python scripts/check_lock.py
check shellcheck -x scripts/*.sh .ci/run deploy/compose/debian/*.sh
if [ -e scripts/openapi.py ]; then check .venv/bin/python scripts/openapi.py --check; fi
check .venv/bin/python scripts/configuration_docs.py --check
check .venv/bin/python scripts/metrics_docs.py --check
[ "${#failed[@]}" -eq 0 ] || die "failed: $(printf '\n  %s' "${failed[@]}")"
