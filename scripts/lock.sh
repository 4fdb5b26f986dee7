#!/usr/bin/env bash
# Resolves pyproject.toml, extras included, into requirements.lock: every package at one version, one a line.
# The pins name no CPU or CUDA build, so that scripts/setup.sh may choose it for the machine.
set -euo pipefail
cd "$(dirname "$0")/.."
report=$(mktemp)
trap 'rm -f "$report"' EXIT
.venv/bin/python -m pip install -qq --dry-run --ignore-installed --report "$report" ".[dev]"
.venv/bin/python - "$report" <<'PYTHON' >requirements.lock.new
import json
import sys

# With CUDA builds torch pins these itself; a machine without a GPU must not get them.
OWN_PINS = ("cuda-", "nvidia-c", "nvidia-nccl", "nvidia-nv", "triton")
found = {}
for item in json.load(open(sys.argv[1]))["install"]:
    name = item["metadata"]["name"].lower().replace("_", "-")
    found[name] = item["metadata"]["version"].split("+")[0]
print("# Made by `make lock` from pyproject.toml; do not edit.")
for name in sorted(found):
    if name != "st4vla" and not name.startswith(OWN_PINS):
        print(f"{name}=={found[name]}")
PYTHON
mv requirements.lock.new requirements.lock
echo "requirements.lock: $(grep -c == requirements.lock) packages"
