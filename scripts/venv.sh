#!/usr/bin/env bash
# venv.sh all|test: make .venv with the project and its locked dependencies, or do nothing where that was done before.
# PYTHON=... chooses the interpreter.
set -euo pipefail
cd "$(dirname "$0")/.."
root=$PWD
. scripts/machine.sh

extra=${1:?usage: venv.sh all|test}
venv=.venv
lock=requirements/test.lock

is_supported() { "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))' 2>/dev/null; }
version_of() { "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])'; }

find_python() {
  local candidate
  if [ -n "${PYTHON:-}" ]; then
    is_supported "$PYTHON" || die "PYTHON=$PYTHON is no working Python 3.11 to 3.14"
    echo "$PYTHON"
    return
  fi
  for candidate in python3 python3.14 python3.13 python3.12 python3.11; do
    if is_supported "$candidate"; then echo "$candidate"; return; fi
  done
  return 1
}

# Sets $python; asks apt for one where none is found.
choose_python() {
  python=$(find_python) && return
  [ -z "${PYTHON:-}" ] || exit 1
  if has_apt && can_be_root; then
    say "Installing Debian's python3"
    apt_update && apt_install python3 python3-venv && python=$(find_python) && return
  fi
  die "no Python 3.11 to 3.14 was found: install one (Debian: apt-get install python3 python3-venv), or name one with PYTHON=..."
}

# Debian packs the part of Python that fills a virtual environment separately.
require_ensurepip() {
  "$python" -c 'import ensurepip, venv' 2>/dev/null && return
  local package
  package=python$(version_of "$python")-venv
  if has_apt && can_be_root; then
    say "Installing Debian's $package"
    apt_update && apt_install "$package" && "$python" -c 'import ensurepip, venv' 2>/dev/null && return
  fi
  has_apt || die "$python has no module ensurepip: install the package of your system that holds it, or name another Python with PYTHON=..."
  die "$python has no module ensurepip: install it as root (apt-get install $package), or name another Python with PYTHON=..."
}

# A virtual environment is usable if it runs here (it holds its own path) with the wanted Python, and has pip.
is_usable() {
  [ "$(cat "$venv/.made-in" 2>/dev/null)" = "$root" ] || return
  is_supported "$venv/bin/python" && "$venv/bin/python" -c 'import pip' 2>/dev/null || return
  [ -z "${PYTHON:-}" ] || [ "$(version_of "$venv/bin/python")" = "$(version_of "$PYTHON")" ]
}

[ -z "${PYTHON:-}" ] || find_python >/dev/null
if ! is_usable; then
  choose_python
  require_ensurepip
  say "Making $venv with Python $(version_of "$python")"
  rm -rf "$venv"
  quietly "$python" -m venv "$venv" || die "$python -m venv failed, see above"
  echo "$root" >"$venv/.made-in"
fi

# A stamp holds the checksum of what was installed; test holds all that all holds.
sum=$(cat pyproject.toml "$lock" | cksum)
for stamp in "$extra" test; do
  if [ "$(cat "$venv/.installed-$stamp" 2>/dev/null)" = "$sum" ]; then exit 0; fi
done
say "Installing blockgate[$extra] into $venv"
quietly "$venv/bin/python" -m pip install --disable-pip-version-check --no-input -c "$lock" -e ".[$extra]" ||
  die "pip could not install blockgate[$extra], see above"
echo "$sum" >"$venv/.installed-$extra"
