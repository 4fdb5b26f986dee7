"""Prepare a process for this machine: software Vulkan where it was installed, one thread per worker."""

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

RENDER = "ST4VLA_RENDER"
CHECKOUT = Path(__file__).resolve().parent.parent


def software_vulkan_icds() -> Iterator[Path]:
    """List where `scripts/vulkan.sh` may have put its driver's JSON file, nearest first."""
    if folder := os.environ.get("ST4VLA_VULKAN"):
        yield Path(folder) / "icd.json"
    yield Path.cwd() / ".vulkan" / "icd.json"
    yield CHECKOUT / ".vulkan" / "icd.json"


def process_environment() -> dict[str, str]:
    """Give the variables a worker of ours starts with; a variable the user has set is kept.

    Two threads in one worker while another worker holds the second core slow torch seventyfold, so every
    process gets one unless told otherwise.
    """
    wanted = {
        "OMP_NUM_THREADS": "1",
        "LP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "RAY_USAGE_STATS_ENABLED": "0",
        "DS_ACCELERATOR": os.environ.get("DS_ACCELERATOR", ""),
    }
    found = next((icd for icd in software_vulkan_icds() if icd.is_file()), None)
    if found is not None:
        wanted["VK_DRIVER_FILES"] = str(found.resolve())
    return {name: os.environ.get(name, value) for name, value in wanted.items() if value}


def prepare_process(render_on_gpu: bool = False) -> None:
    """Set `process_environment` in this process; call it before torch or SAPIEN is imported.

    With `render_on_gpu` the software driver is left out, and `render_backend` says so (written, not yet run).
    """
    os.environ.update(process_environment())
    if render_on_gpu:
        os.environ.pop("VK_DRIVER_FILES", None)
        os.environ[RENDER] = "gpu"


def render_backend() -> str:
    """Name the device that this process renders on, as ManiSkill does: "cpu" unless it was prepared for a GPU."""
    return os.environ.get(RENDER, "cpu")


def program(name: str) -> str:
    """Give the word by which a shell calls a program of this environment: its name if that finds it, else its path."""
    own = Path(sys.executable).with_name(name)
    found = shutil.which(name)
    if found is not None and (not own.exists() or os.path.samefile(found, own)):
        return name
    here = os.path.relpath(own)
    return here if not here.startswith("..") else str(own)
