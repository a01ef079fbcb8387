#!/usr/bin/env bash
# test.sh [ARGUMENT...]: prepare .venv and what else the tests use, and run pytest. Arguments are pytest's.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/machine.sh
scripts/test-packages.sh
scripts/venv.sh test

# fetch SCRIPT DIR LAST: let a script fill a folder; the file LAST of it is there once it is complete.
fetch() {
  [ ! -e "$2/$3" ] || return 0
  say "Running $1 for the tests"
  quietly "$1" "$2" || say "It failed, see above: tests that need it skip"
}

# What no package of this system brings goes into the tests' cache, which all clones share.
cache=${XDG_CACHE_HOME:-$HOME/.cache}/blockgate-tests
export EROFS_UTILS=${EROFS_UTILS:-$cache/erofs-utils} GUEST_KERNEL=${GUEST_KERNEL:-$cache/kernel}
fetch scripts/fetch-erofs-utils.sh "$EROFS_UTILS" bin/mkfs.erofs
fetch scripts/fetch-kernel.sh "$GUEST_KERNEL" release

# A file's tests share its servers: one worker runs them all.
exec .venv/bin/python -m pytest -n 2 --dist loadfile "$@"
