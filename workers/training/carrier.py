"""Carry a stage on Ray Train: a DeepSpeed engine per worker, restarted at the last checkpoint when one dies.

Owner: the driver owns the controller and the board. Retries: Ray Train's controller starts all workers anew, at most
`max_failures` times. Lost when a worker dies: the steps since the last checkpoint, which are then done again with the
same samples and the same draws. Errors of our own kind would come again, so they end the run at once.
"""

import logging
import os
import shutil
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray
import ray.train
import torch
from ray.train import Checkpoint, CheckpointConfig, CheckpointUploadMode, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2.api.config import LoggingConfig
from ray.train.v2.api.exceptions import ControllerError, TrainingFailedError, WorkerGroupError

from st4vla.platform.errors import ConfigError, St4vlaError, WorkerLost
from st4vla.platform.train.alone import name_of
from st4vla.platform.train.background import Begin
from st4vla.platform.train.config import SavingConfig
from st4vla.platform.train.loop import Row, Worker
from st4vla.platform.train.stage import StageJob, run_stage
from st4vla.workers.cluster import cpus_per_actor
from st4vla.workers.training.board import Board, Listener, StopOnOwnErrors, original

log = logging.getLogger(__name__)
# Ray Train looks after its workers every 2 s unless told otherwise, and every report waits for that look.
HEALTH_CHECK_S = "0.2"
PART = ".part-"


class RayReporter:
    """Report one worker's news to the board and its part of a checkpoint to Ray Train, which joins the parts."""

    def __init__(self, board: Any, scratch: Path) -> None:
        self.board, self.scratch = board, scratch
        self._written = threading.Event()
        self._written.set()

    def progress(self, row: Row) -> None:
        """Send a row, without waiting."""
        self.board.put.remote(row)

    def checkpoint(self, step: int, begin: Begin, row: Row) -> None:
        """Copy this worker's part and let Ray Train write and join the parts behind the next steps.

        Every worker comes here at the same step. Ray's own thread writes and uploads, and removes the part afterwards.
        """
        self._written.wait()
        self._written = threading.Event()
        folder, written = Path(tempfile.mkdtemp(prefix=PART, dir=self.scratch)), self._written
        finish = begin(folder)
        storage: Any = ray.train.get_context().get_storage()

        def upload(part: Checkpoint, name: str) -> Checkpoint:
            try:
                finish()
                return storage.persist_current_checkpoint(part, name)
            finally:
                written.set()

        ray.train.report(
            row,
            checkpoint=Checkpoint.from_directory(str(folder)),
            checkpoint_dir_name=name_of(step),
            checkpoint_upload_mode=CheckpointUploadMode.ASYNC,
            checkpoint_upload_fn=upload,
        )


def work(settings: dict[str, Any]) -> None:
    """Run one worker's part; Ray Train calls it in every worker, and again after a failure."""
    context = ray.train.get_context()
    worker = Worker(context.get_world_rank(), context.get_world_size())
    device = torch.device("cuda", context.get_local_rank()) if torch.cuda.is_available() else torch.device("cpu")
    reporter = RayReporter(settings["board"], settings["scratch"])
    resume = ray.train.get_checkpoint()
    if resume is None:
        run_stage(settings["job"], worker, reporter, None, device)
        return
    with resume.as_directory() as folder:
        run_stage(settings["job"], worker, reporter, Path(folder), device)


def fit(job: StageJob, run: Any, tell: Callable[[Row], None]) -> Path:
    """Train on the Ray that is connected; give the last checkpoint's folder.

    Raises:
        WorkerLost: workers died more often than `run.max_failures`.
        St4vlaError: what a worker raised on purpose.
    """
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", HEALTH_CHECK_S)
    scaling = scaling_config(run.workers, run.gpus_per_worker, run.min_workers)
    board = ray.remote(num_cpus=0)(Board).remote()
    trainer = TorchTrainer(
        work,
        train_loop_config={"job": job, "board": board, "scratch": run.folder},
        scaling_config=scaling,
        torch_config=TorchConfig(backend="nccl" if scaling.use_gpu else "gloo"),
        run_config=RunConfig(
            name="checkpoints",
            storage_path=str(run.folder),
            failure_config=FailureConfig(max_failures=run.max_failures),
            checkpoint_config=keeping(job.train.saving),
            callbacks=[StopOnOwnErrors()],
            logging_config=LoggingConfig(log_level="ERROR"),
        ),
    )
    with Listener(board, tell):
        try:
            result = trainer.fit()
        except TrainingFailedError as error:
            raise explain(error, run.folder) from error
        finally:
            for left in run.folder.glob(f"{PART}*"):  # a killed worker could not remove its own
                shutil.rmtree(left, ignore_errors=True)
    assert result.checkpoint is not None
    return Path(result.checkpoint.path)


def keeping(saving: SavingConfig) -> CheckpointConfig:
    """Say in Ray Train's words which checkpoints stay; the newest always does."""
    if not saving.best:
        return CheckpointConfig(num_to_keep=saving.keep)
    order = "min" if saving.best_is == "lowest" else "max"
    return CheckpointConfig(
        num_to_keep=saving.keep, checkpoint_score_attribute=saving.best, checkpoint_score_order=order
    )


def scaling_config(workers: int, gpus_per_worker: int | None, min_workers: int | None = None) -> ScalingConfig:
    """Ask for as much of every worker as the cluster has; raise ConfigError where it has too little."""
    num_gpus = ray.cluster_resources().get("GPU", 0)
    gpus = gpus_per_worker if gpus_per_worker is not None else int(num_gpus >= workers)
    if gpus * (min_workers or workers) > num_gpus:
        raise ConfigError(f"workers={workers} need {gpus * workers} GPUs and the cluster has {num_gpus:.0f}; ask fewer")
    cpus = cpus_per_actor(workers)
    resources = {"CPU": cpus} | ({"GPU": gpus} if gpus else {})
    number = workers if min_workers is None else (min_workers, workers)
    return ScalingConfig(num_workers=number, use_gpu=gpus > 0, resources_per_worker=resources)


def explain(error: TrainingFailedError, folder: Path) -> BaseException:
    """Turn Ray Train's error into ours where the cause is known."""
    causes: list[BaseException] = []
    if isinstance(error, WorkerGroupError):
        causes = [original(one) for one in error.worker_failures.values()]
    if isinstance(error, ControllerError):
        causes = [original(error.controller_failure)]
    for cause in causes:
        if isinstance(cause, St4vlaError):
            return cause
    reasons = "; ".join(f"{type(cause).__name__}: {(str(cause).splitlines() or [''])[-1]}" for cause in causes)
    return WorkerLost(
        f"training stopped: {reasons or error}; the workers' logs are under {folder}; "
        "the same command goes on at the last checkpoint"
    )
