"""Run a stage in one process, without Ray: the same loop and the same DeepSpeed, easy to step through."""

import contextlib
import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist

from st4vla.platform.data.disk import refused_by_disk
from st4vla.platform.errors import CheckpointError
from st4vla.platform.train.background import Background, Begin, Finish
from st4vla.platform.train.config import SavingConfig
from st4vla.platform.train.folder import kept
from st4vla.platform.train.job import StageJob
from st4vla.platform.train.loop import Row, Worker
from st4vla.platform.train.stage import run_stage

# Lies beside checkpoints that one process keeps; Ray Train keeps an account of its own, and knows none but its own.
KEPT_ALONE = "kept_by_one_process"


class FolderReporter:
    """Keep checkpoints in a folder, newest last, and hand progress to a function.

    A checkpoint is written under a hidden name and renamed, so that a killed run leaves whole ones only. The file
    `KEPT_ALONE` beside them says who keeps them.
    """

    def __init__(self, folder: Path, saving: SavingConfig, tell: Callable[[Row], None] = lambda row: None) -> None:
        self.folder, self.saving, self.tell = folder, saving, tell
        self._behind = Background()

    def progress(self, row: Row) -> None:
        """Pass a row on."""
        self.tell(row)

    def checkpoint(self, step: int, begin: Begin, row: Row, stands: Finish) -> None:
        """Write a checkpoint beside the next steps, and then let go of those that need not stay."""
        self._behind.wait()
        hidden, place = self.folder / f".{name_of(step)}", self.folder / name_of(step)
        shutil.rmtree(hidden, ignore_errors=True)
        with refused_by_disk(self.folder, CheckpointError):
            hidden.mkdir(parents=True)
            finish = begin(hidden)

        def write() -> None:
            with refused_by_disk(self.folder, CheckpointError):
                finish()
                (self.folder / KEPT_ALONE).touch()
                shutil.rmtree(place, ignore_errors=True)
                hidden.rename(place)
            stands()
            whole = self.checkpoints()
            for old in set(whole) - kept(whole, self.saving):
                shutil.rmtree(old)

        self._behind.start(write)

    def close(self) -> None:
        """Wait for the last checkpoint; raise what went wrong with it."""
        self._behind.close()

    def checkpoints(self) -> list[Path]:
        """List the whole checkpoints, oldest first."""
        return sorted(self.folder.glob("step_*"))


def name_of(step: int) -> str:
    """Name a checkpoint so that names sort as steps do."""
    return f"step_{step:07d}"


def join_group_of_one(device: torch.device) -> None:
    """Bring up the torch process group that DeepSpeed asks for, with this process alone in it.

    It stays up as long as the process: DeepSpeed keeps what it made of the first one, and a second would not know that.
    """
    if dist.is_initialized():
        return
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    # DeepSpeed asserts that a launcher has set it.
    os.environ.setdefault("LOCAL_RANK", "0")
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, init_method=f"tcp://127.0.0.1:{port}", rank=0, world_size=1)


def run_alone(job: StageJob, folder: Path, tell: Callable[[Row], None] = lambda row: None) -> Path:
    """Run a stage, or the rest of it, keeping checkpoints under `folder`; give the last checkpoint."""
    reporter = FolderReporter(folder, job.train.saving, tell)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    done = reporter.checkpoints()
    resume = done[-1] if done else None
    if resume is None or resume.name != name_of(job.train.steps):
        join_group_of_one(device)
        with contextlib.closing(reporter):
            run_stage(job, Worker(), reporter, resume, device)
    return reporter.checkpoints()[-1]
