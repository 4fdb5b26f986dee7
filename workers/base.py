"""Make the base checkpoint that ships with the package: render stills, ground a planner on them, keep it in bf16.

The published policies start from a planner and a frame encoder that have seen the web; a tiny one has nobody to
start from, so it is grounded on still scenes once, and every demo begins there.
"""

from pathlib import Path
from typing import Any

import torch

from st4vla.workers.demo import Step, hydra_value, show_and_run

# The rest of a policy, the query transformer and the action expert, starts from random weights in stage 2.
PARTS = ("planner", "destination_head", "frame_encoder")


def pack(trained: Path, out: Path) -> Path:
    """Write the modules that stage 1 trains of a checkpoint into `out`, in bf16; give that folder."""
    from st4vla.platform.checkpoint import load_checkpoint, save_checkpoint

    one = load_checkpoint(trained, parts_ok=True)
    save_checkpoint(out, one.model, one.processor, one.lineage, parts=PARTS, dtype=torch.bfloat16)
    return out


def main(cfg: Any) -> int:
    """Run `st4vla base`."""
    from omegaconf import OmegaConf
    from rich.console import Console

    settings: Any = OmegaConf.to_container(cfg, resolve=True)
    console = Console()
    for title, step in settings["step"].items():
        words = [step["command"], *(f"{key}={hydra_value(value)}" for key, value in step["settings"].items())]
        show_and_run(console, Step(title, tuple(words)))
    out = pack(Path(settings["run_dir"]) / "train" / "checkpoint", Path(settings["out"]))
    size = sum(path.stat().st_size for path in out.iterdir())
    console.print(f"base checkpoint in {out}, {size / 1e6:.1f} MB")
    return 0
