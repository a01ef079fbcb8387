#!/bin/sh
# Unpack a recent erofs-utils (tar mode, 512-byte blocks: 1.7 or later) beside the system's own, into DIR.
#
#   scripts/fetch-erofs-utils.sh DIR [SUITE]
#
# Debian 12 has erofs-utils 1.5, which knows neither. This takes the packages of SUITE (default: trixie) from the
# mirror that this machine's apt already uses, together with the C library they need, and installs nothing: DIR/bin
# holds wrappers that run each program with DIR's own libraries. Done already: does nothing.
set -eu

dir=${1:?usage: fetch-erofs-utils.sh DIR [SUITE]}
suite=${2:-trixie}
mkdir -p "$dir"
dir=$(cd "$dir" && pwd)
[ -x "$dir/bin/mkfs.erofs" ] && exit 0

# apt knows its mirror in whatever file and form its sources are.
# shellcheck disable=SC1091,SC2016 # the system's file; apt's own field
mirror=$(
    . /etc/os-release
    apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' "Release: $VERSION_CODENAME" | sed -n 1p
)
[ -n "$mirror" ] || { echo "fetch-erofs-utils: no Debian mirror in apt's sources" >&2; exit 1; }

mkdir -p "$dir/apt/lists/partial" "$dir/apt/cache/archives/partial" "$dir/deb" "$dir/root" "$dir/bin"
echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror $suite main" > "$dir/apt/sources.list"
apt() {
    apt-get -qq -o Dir::Etc::SourceList="$dir/apt/sources.list" -o Dir::Etc::SourceParts=/dev/null \
        -o Dir::State::Lists="$dir/apt/lists" -o Dir::Cache="$dir/apt/cache" -o APT::Sandbox::User=root "$@"
}
apt update
(cd "$dir/deb" && apt download erofs-utils erofsfuse libc6 libdeflate0 libfuse3-4 libgcc-s1 liblz4-1 liblzma5 \
    libpcre2-8-0 libselinux1 libuuid1 libxxhash0 libzstd1 zlib1g)
for package in "$dir"/deb/*.deb; do
    dpkg-deb -x "$package" "$dir/root"
done

loader=$(find "$dir/root" -name 'ld-linux*.so.*' | head -n 1)
libraries=$(dirname "$(find "$dir/root/usr/lib" -name libc.so.6 | head -n 1)")
# mkfs.erofs last: it says that all is there.
for program in erofsfuse dump.erofs fsck.erofs mkfs.erofs; do
    printf '#!/bin/sh\nexec "%s" --library-path "%s" "%s" "$@"\n' \
        "$loader" "$libraries" "$dir/root/usr/bin/$program" > "$dir/bin/$program"
    chmod +x "$dir/bin/$program"
done
rm -rf "$dir/apt" "$dir/deb"
"$dir/bin/mkfs.erofs" --version
