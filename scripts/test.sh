#!/usr/bin/env bash
# test.sh [ARGUMENT...]: prepare .venv and what else the tests use, and run pytest. Arguments are pytest's.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/machine.sh
scripts/test-packages.sh
scripts/venv.sh test

# The tests' own copy of what no package of this system brings; kept across runs and clones, as a Debian root is.
export EROFS_UTILS=${EROFS_UTILS:-${XDG_CACHE_HOME:-$HOME/.cache}/blockgate-tests/erofs-utils}
if [ ! -x "$EROFS_UTILS/bin/mkfs.erofs" ]; then
  say "Fetching a recent erofs-utils into $EROFS_UTILS"
  quietly scripts/fetch-erofs-utils.sh "$EROFS_UTILS" || say "It could not be fetched, see above: tests that need it skip"
fi

# A file's tests share its servers: one worker runs them all.
exec .venv/bin/python -m pytest -n 2 --dist loadfile "$@"
