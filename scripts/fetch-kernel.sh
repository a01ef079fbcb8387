#!/usr/bin/env bash
# Unpack a stock Debian kernel (6.12 or later, with modules nbd, erofs and overlay) into DIR, for the tests' guest.
#
#   scripts/fetch-kernel.sh DIR
#
# It is the distribution's cloud kernel, from the mirror that this machine's apt already uses (Debian 12: of its
# backports); nothing is installed. DIR/release names it once all is there. Done already: does nothing.
set -euo pipefail
# shellcheck source=scripts/machine.sh
. "$(dirname "$0")/machine.sh"

folder=${1:?usage: fetch-kernel.sh DIR}
[ ! -e "$folder/release" ] || exit 0
mkdir -p "$folder"
folder=$(cd "$folder" && pwd)

. /etc/os-release
[ "${ID:-}" = debian ] || die "the guest's kernel is Debian's, and this system is not Debian"
suite=$VERSION_CODENAME
[ "$suite" != bookworm ] || suite=bookworm-backports
# shellcheck disable=SC2016 # apt's own field, not the shell's
mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' "Release: $VERSION_CODENAME" | sed -n 1p)
[ -n "$mirror" ] || die "apt's sources name no mirror of $VERSION_CODENAME"

# An apt of its own: the machine's sources and lists stay as they are.
mkdir -p "$folder/apt/lists/partial" "$folder/apt/cache/archives/partial"
echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror $suite main" >"$folder/apt/sources.list"
options=(-o "Dir::Etc::SourceList=$folder/apt/sources.list" -o Dir::Etc::SourceParts=/dev/null
  -o "Dir::State::Lists=$folder/apt/lists" -o "Dir::Cache=$folder/apt/cache" -o APT::Sandbox::User=root)
apt-get -qq "${options[@]}" update
package=$(apt-cache "${options[@]}" show "linux-image-cloud-$(dpkg --print-architecture)" |
  sed -n 's/^Depends: \(linux-image-[^ ,]*\).*/\1/p' | head -n 1)
[ -n "$package" ] || die "$suite has no cloud kernel for this processor"
(cd "$folder/apt" && apt-get -qq "${options[@]}" download "$package")
rm -rf "$folder/kernel"
dpkg-deb -x "$folder/apt/$package"_*.deb "$folder/kernel"
# depmod looks in /lib, where recent packages leave it to the system that /usr/lib is meant.
[ -e "$folder/kernel/lib" ] || ln -s usr/lib "$folder/kernel/lib"
/sbin/depmod -b "$folder/kernel" "${package#linux-image-}"
rm -rf "$folder/apt"
echo "${package#linux-image-}" >"$folder/release"
