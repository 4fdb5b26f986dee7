#!/usr/bin/env bash
# Builds the wheel and uses it in a fresh environment away from the checkout. The environment borrows the third-party
# packages of .venv, but not st4vla itself.
set -euo pipefail
cd "$(dirname "$0")/.."
rm -rf build dist
.venv/bin/python -m pip wheel -q --no-deps --no-build-isolation -w dist .
wheel=$(echo "$PWD"/dist/st4vla-*.whl)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
.venv/bin/python -m venv --without-pip "$work/venv"
.venv/bin/python -m pip --python "$work/venv/bin/python" install -q --no-deps "$wheel"
borrowed=$("$PWD/.venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
cd "$work"
# Appended by a plain path and not as a site folder, so that the checkout's editable hook stays out.
echo "import sys; sys.path.append('$borrowed')" >"$work/venv/lib/$(ls "$work/venv/lib")/site-packages/borrowed.pth"
for command in $(venv/bin/st4vla --help | awk '/^  [a-z]/ {print $1}'); do
    venv/bin/st4vla "$command" --help >/dev/null
done
venv/bin/python - <<'PYTHON'
import platform

import st4vla.platform.contracts

assert platform.system() == "Linux"
assert "venv" in st4vla.platform.contracts.__file__, st4vla.platform.contracts.__file__
PYTHON
echo "build: $(basename "$wheel") works outside the checkout"
