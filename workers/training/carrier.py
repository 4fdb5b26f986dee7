"""Carry a stage on Ray Train: a DeepSpeed engine per worker, restarted at the last checkpoint when one dies.

Owner: the driver owns the controller and the board. Retries: Ray Train's controller starts all workers anew, at most
`max_failures` times. Lost when a worker dies: the steps since the last checkpoint, which are then done again with the
same samples and the same draws. Errors of our own kind would come again, so they end the run at once.
"""

import contextlib
import logging
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray
import ray.train
import torch
from ray.train import Checkpoint, CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2.api.config import LoggingConfig
from ray.train.v2.api.exceptions import ControllerError, TrainingFailedError, WorkerGroupError

from st4vla.platform.data.disk import refused_by_disk
from st4vla.platform.errors import CheckpointError, ConfigError, St4vlaError, WorkerLost
from st4vla.platform.train.alone import name_of
from st4vla.platform.train.background import Background, Begin, Finish
from st4vla.platform.train.config import SavingConfig
from st4vla.platform.train.job import StageJob
from st4vla.platform.train.loop import Row, Worker
from st4vla.platform.train.stage import run_stage
from st4vla.workers.cluster import cpus_per_actor
from st4vla.workers.training.board import Board, Listener, StopOnOwnErrors, original

log = logging.getLogger(__name__)
# Ray Train looks after its workers every 2 s unless told otherwise, and every report waits for that look.
HEALTH_CHECK_S = "0.2"
PART = ".part-"
# How long an elastic run waits for workers that it had before it goes on with those there are, and how often it looks
# whether there are more.
GIVE_UP_S = "30"
LOOK_EVERY_S = 60.0


class RayReporter:
    """Report one worker's news to the board and its part of a checkpoint to Ray Train, which joins the parts.

    `ray.train.report` waits for every worker, so it is called behind the steps, once this worker's part is written:
    what has been reported is whole, and a worker that dies in between leaves the checkpoint before it.
    """

    def __init__(self, board: Any, scratch: Path) -> None:
        self.board, self.scratch = board, scratch
        self._behind = Background()

    def progress(self, row: Row) -> None:
        """Send a row, without waiting."""
        self.board.put.remote(row)

    def checkpoint(self, step: int, begin: Begin, row: Row, stands: Finish) -> None:
        """Copy this worker's part, then write and report it beside the next steps.

        Every worker comes here at the same step, and reports in the same order. Ray removes the part once it has
        uploaded it.
        """
        self._behind.wait()
        with refused_by_disk(self.scratch, CheckpointError):
            folder = Path(tempfile.mkdtemp(prefix=PART, dir=self.scratch))
            finish = begin(folder)

        def write_and_report() -> None:
            with refused_by_disk(self.scratch, CheckpointError):
                finish()
                ray.train.report(
                    row,
                    checkpoint=Checkpoint.from_directory(str(folder)),
                    checkpoint_dir_name=name_of(step),
                    delete_local_checkpoint_after_upload=True,
                )
            stands()

        self._behind.start(write_and_report)

    def __enter__(self) -> "RayReporter":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Wait until the last checkpoint is reported; a loop that failed must not wait for ever for others' parts."""
        if kind is None:
            self._behind.close()
        else:
            self._behind.leave()


def work(settings: dict[str, Any]) -> None:
    """Run one worker's part; Ray Train calls it in every worker, and again after a failure."""
    context = ray.train.get_context()
    worker = Worker(context.get_world_rank(), context.get_world_size())
    device = torch.device("cuda", context.get_local_rank()) if torch.cuda.is_available() else torch.device("cpu")
    reporter = RayReporter(settings["board"], settings["scratch"])
    resume = ray.train.get_checkpoint()
    with reporter, resume.as_directory() if resume else contextlib.nullcontext() as folder:
        run_stage(settings["job"], worker, reporter, Path(folder) if folder else None, device)


def fit(job: StageJob, run: Any, tell: Callable[[Row], None]) -> Path:
    """Train on the Ray that is connected; give the last checkpoint's folder.

    Raises:
        WorkerLost: workers died more often than `run.max_failures`.
        St4vlaError: what a worker raised on purpose.
    """
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", HEALTH_CHECK_S)
    if run.min_workers is not None:
        os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", GIVE_UP_S)
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
    """Ask for as much of every worker as the cluster has; raise ConfigError where it has too little.

    Workers of an elastic run ask for a whole CPU each: with less, half a cluster would hold as many as the whole.
    """
    num_gpus = ray.cluster_resources().get("GPU", 0)
    fewest = min_workers or workers
    gpus = gpus_per_worker if gpus_per_worker is not None else int(num_gpus >= fewest)
    if gpus * fewest > num_gpus:
        raise ConfigError(f"{fewest} workers need {gpus * fewest} GPUs and the cluster has {num_gpus:.0f}; ask fewer")
    cpus = cpus_per_actor(workers) if min_workers is None else 1.0
    if cpus * fewest > (there := ray.cluster_resources().get("CPU", 0)):
        raise ConfigError(f"min_workers={fewest} need as many CPUs and the cluster has {there:.0f}; ask fewer")
    resources = {"CPU": cpus} | ({"GPU": gpus} if gpus else {})
    number = workers if min_workers is None else (min_workers, workers)
    return ScalingConfig(
        num_workers=number,
        use_gpu=gpus > 0,
        resources_per_worker=resources,
        elastic_resize_monitor_interval_s=LOOK_EVERY_S,
    )


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
