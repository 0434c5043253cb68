#!/usr/bin/env bash
# pythons.sh DIR VERSION...: newer Pythons than this system has, from Debian's unstable packages.
#
#     tools/pythons.sh ~/pythons 3.14 3.15
#     PATH=~/pythons:$PATH make matrix
#
# It needs a Debian with apt and dpkg, but no root, and changes nothing outside DIR: apt works with
# a state of its own, and the packages are unpacked, not installed. Each Python keeps to the C
# library and the other libraries that were unpacked with it; what it starts uses the system's.
# SUITE=testing takes another suite, and DIR can be removed at any time.
set -euo pipefail
if [ $# -lt 2 ]; then
    sed -n '2,5s/^# \{0,1\}//p' "$0" >&2
    exit 2
fi

suite=${SUITE:-unstable}
mkdir -p "$1"
dir=$(cd "$1" && pwd)
shift
root=$dir/root
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# The archive that this system installs from, with the suite changed.
mirror=$(cat /etc/apt/sources.list.d/debian.sources /etc/apt/sources.list 2> /dev/null |
    sed -n 's/^URIs: *//p; s/^deb \(\[[^]]*\] *\)\{0,1\}\([^ ]*\) .*/\2/p' || true)
mirror=${mirror%%$'\n'*}
keyring=/usr/share/keyrings/debian-archive-keyring.gpg
mkdir -p "$work"/{etc/preferences.d,etc/apt.conf.d,lists/partial,cache/archives/partial,debs}
: > "$work/status" # nothing is installed, so apt names every library down to libc
echo "deb [signed-by=$keyring] $mirror $suite main" > "$work/etc/sources.list"
apt=(apt-get -qq -o "Dir::Etc=$work/etc" -o "Dir::State::lists=$work/lists"
    -o "Dir::State::status=$work/status" -o "Dir::Cache=$work/cache" -o APT::Sandbox::User=
    -o APT::Install-Recommends=false)

programs=(patchelf)
headers=()
for version; do
    programs+=("python$version" "python$version-venv")
    headers+=("libpython$version-dev") # to build what has no wheel yet
done
echo "fetching ${programs[*]}"
"${apt[@]}" update
# What the programs need: the libraries, the parts of Python, and the wheel of pip.
needed=$("${apt[@]}" --simulate install "${programs[@]}" | sed -n 's/^Inst \([^ ]*\).*/\1/p' |
    grep -E '^(lib|python|patchelf)')
# shellcheck disable=SC2086 # a list of words
(cd "$work/debs" && "${apt[@]}" download $needed "${headers[@]}")
rm -rf "$root"
for package in "$work"/debs/*.deb; do
    dpkg-deb --extract "$package" "$root"
done

# Let each Python start with the unpacked loader and find the unpacked libraries.
loader=$(echo "$root"/usr/lib/*/ld-linux*.so.*)
libraries=$(dirname "$loader")
patchelf=("$loader" --library-path "$libraries" "$root/usr/bin/patchelf")
for version; do
    python=$root/usr/bin/python$version
    # In two steps and in this order: what patchelf makes of both at once does not start.
    "${patchelf[@]}" --force-rpath --set-rpath "$libraries" "$python"
    "${patchelf[@]}" --set-interpreter "$loader" "$python"
    # Debian's ensurepip takes pip's wheel from a place that we have moved.
    sed -i "s|'/usr/share/python-wheels|'$root/usr/share/python-wheels|" \
        "$root/usr/lib/python$version"/_sysconfigdata_*.py
    # Debian's pyconfig.h names the one of the architecture, which a compiler looks for in /usr.
    cp "$root"/usr/include/*/python"$version"/pyconfig.h "$root/usr/include/python$version/"
    printf '#!/bin/sh\nexec "%s" "$@"\n' "$python" > "$dir/python$version"
    chmod +x "$dir/python$version"
    "$dir/python$version" --version
done
