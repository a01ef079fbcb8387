# shellcheck shell=bash
# What the scripts ask of the machine; sourced by them, never run.

say() { printf '==> %s\n' "$*" >&2; }
die() { printf 'error: %s\n' "$*" >&2; exit 1; }

# Run a command quietly; its output is shown only if it fails.
quietly() {
  local log status=0
  log=$(mktemp)
  "$@" >"$log" 2>&1 </dev/null || status=$?
  [ "$status" -eq 0 ] || tail -n 40 "$log" >&2
  rm -f "$log"
  return "$status"
}

has_apt() { command -v apt-get >/dev/null && command -v dpkg-query >/dev/null; }

# Become root, or return false: as root already, by a sudo that asks nothing, or by one that can ask somebody.
can_be_root() { [ "$(id -u)" -eq 0 ] || sudo -n true 2>/dev/null || { [ -t 0 ] && command -v sudo >/dev/null && sudo -v; }; }
as_root() { if [ "$(id -u)" -eq 0 ]; then "$@"; else sudo "$@"; fi; }

is_installed() { [ "$(dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null)" = installed ]; }

# Whether apt could install a package with what it knows now.
is_available() {
  local policy
  policy=$(LC_ALL=C apt-cache policy "$1" 2>/dev/null)
  [[ $policy == *'  Candidate: '[!\(]* ]]
}

# apt_update: refresh apt's lists, once per run of a script.
apt_update() {
  [ -z "${apt_is_updated:-}" ] || return 0
  quietly as_root apt-get -q -o DPkg::Lock::Timeout=300 update || return
  apt_is_updated=yes
}

# apt_install PACKAGE...: install packages without starting the services that they bring: tests start their own.
apt_install() {
  local policy=/usr/sbin/policy-rc.d status=0 made=
  if [ ! -e "$policy" ]; then
    made=yes
    # shellcheck disable=SC2016 # the inner shell's $1
    as_root sh -c 'printf "#!/bin/sh\nexit 101\n" >"$1" && chmod 755 "$1"' sh "$policy"
    # An interrupted installation must not leave the machine unable to start services.
    trap 'as_root rm -f /usr/sbin/policy-rc.d' EXIT
  fi
  quietly as_root env DEBIAN_FRONTEND=noninteractive apt-get -q -y -o DPkg::Lock::Timeout=300 \
    install --no-install-recommends "$@" || status=$?
  if [ -n "$made" ]; then
    as_root rm -f "$policy"
    trap - EXIT
  fi
  return "$status"
}
