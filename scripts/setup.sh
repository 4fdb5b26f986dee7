#!/usr/bin/env bash
# Makes a checkout ready: .venv with the pinned packages, st4vla itself, and software Vulkan where there is no GPU.
# Needs Python 3.11 or 3.12 and the network; needs no root, no ensurepip and no compiler. Running it again is cheap.
set -euo pipefail
cd "$(dirname "$0")/.."
started=$SECONDS
say() { printf 'setup [%3d s] %s\n' $((SECONDS - started)) "$*"; }

find_python() {
    for candidate in "${PYTHON:-}" python3.11 python3.12 python3; do
        [ -n "$candidate" ] && command -v "$candidate" >/dev/null || continue
        "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 13))' || continue
        command -v "$candidate" && return
    done
    echo "setup: found no Python 3.11 or 3.12; install one (Debian, Ubuntu: apt install python3.11) or set PYTHON" >&2
    return 1
}

# A bare Debian has neither ensurepip nor pip; its package python3-pip-whl holds pip as one wheel, which runs as it is.
install_pip() {
    if "$1" -m pip --version >/dev/null 2>&1 && "$1" -m pip --python .venv/bin/python install -q pip; then return; fi
    command -v apt-get >/dev/null || {
        echo "setup: $1 lacks ensurepip and pip; install your system's python3-venv or python3-pip package" >&2
        return 1
    }
    local work
    work=$(mktemp -d)
    mkdir -p "$work"/{lists,archives}/partial
    local options=(-o "Dir::State::Lists=$work/lists" -o "Dir::Cache=$work" -o "APT::Sandbox::User=")
    apt-get "${options[@]}" -qq update
    (cd "$work" && apt-get "${options[@]}" -qq download python3-pip-whl && dpkg-deb -x python3-pip-whl*.deb .)
    .venv/bin/python "$(echo "$work"/usr/share/python-wheels/pip-*.whl)/pip" install -q pip
    rm -rf "$work"
}

python=$(find_python)
ready=.venv/.st4vla-ready
wanted=$({ "$python" -V; pwd; cat requirements.lock pyproject.toml; } | sha256sum | cut -d ' ' -f 1)
if [ "$(cat "$ready" 2>/dev/null)" = "$wanted" ]; then
    scripts/vulkan.sh
    touch "$ready"
    exit 0
fi

if [ ! -x .venv/bin/python ]; then
    say "creating .venv with $("$python" -V) ($python)"
    if "$python" -c 'import ensurepip' 2>/dev/null; then
        "$python" -m venv .venv
    else
        "$python" -m venv --without-pip .venv
        install_pip "$python"
    fi
fi
export PATH=$PWD/.venv/bin:$PATH
pip=(.venv/bin/python -m pip --disable-pip-version-check -qq)

install_packages() {
    local torch
    torch=$(grep -E '^torch==' requirements.lock)
    if ! ldconfig -p 2>/dev/null | grep -q libcuda.so; then
        say "no NVIDIA driver: installing the CPU build of $torch"
        # Without this build PyPI's works as well, only 2 GB larger; so an index that cannot be reached is no error.
        "${pip[@]}" install --no-deps --retries 1 --timeout 15 \
            --extra-index-url https://download.pytorch.org/whl/cpu "$torch+cpu" 2>/dev/null ||
            say "the CPU index did not answer; taking PyPI's build"
    fi
    say "installing $(grep -c == requirements.lock) pinned packages (a few minutes on the first run)"
    "${pip[@]}" install -r requirements.lock
}

# A change of pyproject.toml alone, a new package folder say, needs no look at 200 packages.
locked=$({ "$python" -V; cat requirements.lock; } | sha256sum | cut -d ' ' -f 1)
if [ "$(cat .venv/.lock-installed 2>/dev/null)" != "$locked" ]; then
    install_packages
    echo "$locked" >.venv/.lock-installed
fi
say "installing st4vla from this checkout"
"${pip[@]}" install --no-deps --no-build-isolation -e .
say "looking for Vulkan"
scripts/vulkan.sh
command -v g++ >/dev/null || say "no g++: DeepSpeed cannot compile what it offloads with beside a GPU; on a CPU nothing is missed"
echo "$wanted" >"$ready"
say "ready; try .venv/bin/st4vla doctor"
