#!/usr/bin/env bash
# test-packages.sh: install those Debian packages of test-packages.txt that are missing. What cannot be installed is named,
# and is no failure: the tests that need it skip, saying so.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/machine.sh

list() { sed 's/#.*//; s/[[:space:]]//g; /^$/d' scripts/test-packages.txt; }

# An entry is PACKAGE or PACKAGE=FILE: the file stands for the package where another package brings it.
missing() {
  local entry package file
  while read -r entry; do
    package=${entry%%=*} file=${entry#"$package"}
    is_installed "$package" || { [ -n "$file" ] && [ -e "${file#=}" ]; } || echo "$package"
  done < <(list)
}

if ! has_apt; then
  say "No apt here: tests skip whose programs are missing. Debian's packages of them: $(list | sed 's/=.*//' | paste -sd ' ')"
  exit 0
fi
mapfile -t wanted < <(missing)
[ "${#wanted[@]}" -gt 0 ] || exit 0
if ! can_be_root; then
  say "Some tests will skip. As root, install what they need: apt-get install ${wanted[*]}"
  exit 0
fi
apt_update || die "apt-get update failed, see above"
available=()
for package in "${wanted[@]}"; do
  if is_available "$package"; then available+=("$package"); fi
done
if [ "${#available[@]}" -gt 0 ]; then
  say "Installing ${#available[@]} Debian packages for the tests: ${available[*]}"
  apt_install "${available[@]}" || die "apt-get install failed, see above"
  if [ -d /run/systemd/system ]; then
    say "Services among them were not started; 'systemctl disable NAME' keeps them from starting with the machine"
  fi
fi
mapfile -t wanted < <(missing)
[ "${#wanted[@]}" -eq 0 ] || say "Not in this system's archive, so tests that need them skip: ${wanted[*]}"
