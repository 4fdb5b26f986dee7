"""Make an engine's state fit another number of workers, by DeepSpeed's universal checkpoints.

ZeRO 1 to 3 cut the optimiser's state, and ZeRO 3 the weights, into one shard a worker; a universal checkpoint holds one
file a parameter instead, from which any number of workers cuts its own shards. ZeRO 0 cuts nothing and needs none.
"""

import json
import shutil
import socket
import subprocess
import sys
from pathlib import Path

from st4vla.platform.errors import CheckpointError

TAG = "state"
WORLD = "world.json"


def fits(folder: Path, workers: int) -> bool:
    """Say whether `workers` can read an engine's state as it is.

    Raises:
        CheckpointError: the folder does not say who wrote it.
    """
    try:
        world = json.loads((folder / WORLD).read_text())
        return world["zero_stage"] == 0 or world["workers"] == workers
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(
            f"{folder / WORLD} cannot be read, {error!r}: the checkpoint is incomplete; delete it and run again"
        ) from error


def universal_folder(folder: Path) -> Path:
    """Say where this machine keeps the converted state, beside the checkpoint."""
    checkpoint = folder.parent
    return checkpoint.parent / f".universal-{checkpoint.name}-{socket.gethostname()}"


def convert(folder: Path) -> None:
    """Convert an engine's state for any number of workers, in a process of its own.

    Raises:
        CheckpointError: DeepSpeed could not; its last lines are told.
    """
    target = universal_folder(folder)
    shutil.rmtree(target, ignore_errors=True)
    # Stages 1 and 2 ask that what older versions did not write be put in.
    words = ["--inject_missing_state", "--num_extract_workers", "1", "--num_merge_workers", "1"]
    places = ["--input_folder", str(folder / TAG), "--output_folder", str(target / TAG)]
    done = subprocess.run(
        [sys.executable, "-m", "deepspeed.checkpoint.ds_to_universal", *places, *words],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        said = "\n".join((done.stderr or done.stdout).splitlines()[-5:])
        raise CheckpointError(f"{folder} could not be made to fit another number of workers:\n{said}")


def drop_converted(folder: Path) -> None:
    """Remove what `convert` made."""
    shutil.rmtree(universal_folder(folder), ignore_errors=True)
