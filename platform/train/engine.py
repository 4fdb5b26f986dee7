"""Wrap one DeepSpeed engine: its settings from ours, its traps avoided, its checkpoints read and written."""

import contextlib
import json
import logging
import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from st4vla.platform.data.disk import refused_by_disk
from st4vla.platform.errors import CheckpointError
from st4vla.platform.train.average import Average
from st4vla.platform.train.background import Finish, Snapshot
from st4vla.platform.train.config import TrainConfig
from st4vla.platform.train.objective import EXACT, Losses, Objective
from st4vla.platform.train.optimiser import build_optimiser, set_learning_rates
from st4vla.platform.train.universal import TAG, WORLD, convert, drop_converted, fits, universal_folder

AVERAGE = "average.pt"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def import_deepspeed(device: torch.device) -> Any:
    """Import DeepSpeed quietly, and on a CPU without its shared-memory kernel.

    That kernel serves `inference_all_reduce` alone, which training never calls, yet `initialize` compiles it for half
    a minute and raises where there is no compiler.
    """
    os.environ.setdefault("DS_ACCELERATOR", device.type)
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    import deepspeed
    from deepspeed.utils import logger

    logger.setLevel(logging.WARNING)
    if device.type == "cpu":
        # `import deepspeed.comm.torch as t` gives another module than the one deepspeed.comm uses.
        vars(sys.modules["deepspeed.comm.torch"])["build_shm_op"] = lambda: None
    return deepspeed


def deepspeed_settings(config: TrainConfig, world_size: int, universal: bool = False) -> dict[str, Any]:
    """Say in DeepSpeed's own keys what our config means; `world_size` fixes the micro-batch.

    Args:
        universal: the state to be loaded was converted for another number of workers.
    """
    engine = config.engine
    samples = max(config.batch.robot, config.batch.grounding)
    settings: dict[str, Any] = {
        "train_batch_size": samples,
        "train_micro_batch_size_per_gpu": samples // (world_size * config.batch.accumulation),
        "gradient_accumulation_steps": config.batch.accumulation,
        # Without ZeRO DeepSpeed clips parameter by parameter and forgets the norm; `TrainEngine.step` does it at once.
        "gradient_clipping": config.optimiser.clip_norm if engine.zero_stage else 0.0,
        "steps_per_print": sys.maxsize,
        "bf16": {"enabled": engine.precision == "bf16"},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        # Every checkpoint's tag is the same constant, so workers need not compare theirs.
        "checkpoint": {"load_universal": universal, "tag_validation": "Ignore"},
        "zero_optimization": {
            "stage": engine.zero_stage,
            "overlap_comm": engine.overlap_communication,
            "reduce_bucket_size": engine.bucket_elements,
            "allgather_bucket_size": engine.bucket_elements,
            "stage3_gather_16bit_weights_on_model_save": True,
        },
    }
    if engine.offload == "cpu":
        settings["zero_optimization"]["offload_optimizer"] = {"device": "cpu"}
    return settings


def copying_engine() -> Any:
    """Make DeepSpeed hand over what it would write: each state and its path go to the function `take`."""
    from deepspeed.runtime.checkpoint_engine import TorchCheckpointEngine

    class CopyingEngine(TorchCheckpointEngine):
        take: Callable[[Any, str], None]

        def save(self, state_dict: Any, path: str) -> None:
            self.take(state_dict, path)

    return CopyingEngine()


class TrainEngine:
    """One worker's share of the model and its optimiser; every method is called by all workers in step."""

    def __init__(
        self,
        model: torch.nn.Module,
        config: TrainConfig,
        device: torch.device,
        world_size: int,
        resume: Path | None = None,
    ) -> None:
        """Hand the model to DeepSpeed; a torch process group must be up.

        Args:
            resume: the state that `load` will read; other workers than these may have written it.
        """
        deepspeed = import_deepspeed(device)
        self.config = config
        self.device = device
        self.dtype = DTYPES[config.engine.precision]
        self._universal = resume is not None and not fits(resume, world_size)
        objective = Objective(model, config.loss_weights)
        optimiser = build_optimiser(model.named_parameters(), config.optimiser)
        self._trained = [one for group in optimiser.param_groups for one in group["params"]]
        self._norm: torch.Tensor | None = None
        self._engine, self._optimiser, *_ = deepspeed.initialize(
            model=objective,
            optimizer=optimiser,
            config=deepspeed_settings(config, world_size, self._universal),
            dist_init_required=False,
        )
        # Not before: DeepSpeed brings the weights to their device, and the averages are to lie beside them.
        self._average = Average(model, config.average) if config.average.decay else None
        self._zero = deepspeed.zero
        self._world = {"workers": world_size, "zero_stage": config.engine.zero_stage}
        self._copies = self._engine.checkpoint_engine = copying_engine()
        self.snapshot = Snapshot()

    @property
    def model(self) -> torch.nn.Module:
        """The policy, without what DeepSpeed and the objective lay around it."""
        return self._engine.module.model

    def losses(self, batches: Mapping[str, Any]) -> tuple[torch.Tensor, Losses]:
        """Forward one micro-batch; give the weighted sum and the parts for the log."""
        return self._engine({source: self._place(batch) for source, batch in batches.items()})

    def backward(self, total: torch.Tensor) -> None:
        """Accumulate gradients of one micro-batch, reduced over the workers at the step's last one."""
        self._engine.backward(total)

    def step(self, step: int) -> dict[str, float]:
        """Count a micro-batch and, at the step's last one, update the weights; give this step's rates by pattern.

        What `save` took must have been copied by then: `snapshot.flush`.
        """
        rates = set_learning_rates(self._optimiser, self.config.optimiser, step, self.config.steps)
        if self.config.engine.zero_stage == 0 and self._engine.is_gradient_accumulation_boundary():
            clip = self.config.optimiser.clip_norm or math.inf
            self._norm = torch.nn.utils.clip_grad_norm_(self._trained, clip)
        boundary = self._engine.is_gradient_accumulation_boundary()
        self._engine.step()
        if self._average is not None and boundary:
            self._average.follow(step)
        return rates

    @property
    def norm(self) -> torch.Tensor | float | None:
        """Global norm of the last step's gradients before clipping, where there was one; a GPU is not waited for."""
        return self._norm if self.config.engine.zero_stage == 0 else self._engine.get_global_grad_norm()

    def gradient_norm(self) -> float:
        """Wait for the norm; 0 where there was no step yet."""
        return 0.0 if self.norm is None else float(self.norm)

    def train(self, training: bool = True) -> None:
        """Switch dropout on or off."""
        self._engine.train(training)

    @contextlib.contextmanager
    def whole_weights(self) -> Iterator[torch.nn.Module]:
        """Give the policy with every weight present, gathered under ZeRO 3; averaged ones, where an average is kept.

        Such weights are only lent: what the snapshot takes of them is copied before they go again.
        """
        if self.config.engine.zero_stage < 3 and self._average is None:
            yield self.model
            return
        self.snapshot.flush()  # an average takes the place of weights that were taken before
        with self._lent():
            yield self.model
            self.snapshot.settle()

    def _lent(self) -> contextlib.AbstractContextManager[Any]:
        if self.config.engine.zero_stage == 3:
            return self._zero.GatheredParameters(list(self.model.parameters()))
        assert self._average is not None
        return self._average.in_place()

    def save(self, folder: Path, counters: Mapping[str, Any]) -> Finish:
        """Take this worker's shards of weights and optimiser, with the loop's counters.

        Returns:
            the function that writes them under `folder`, for after `snapshot.settle`; it may run beside later steps,
            but must end before the next call of this one, which copies to the same memory. The next update must wait
            for `snapshot.flush`.

        Raises:
            CheckpointError: from that function too, where the disk refuses.
        """
        files: list[tuple[Any, str]] = []
        keep = self.snapshot.take
        self._copies.take = lambda state, path: files.append((keep(state, Path(path).name), path))
        if self._average is not None:
            files.append((keep(self._average.state(), AVERAGE), str(folder / AVERAGE)))
        with refused_by_disk(folder, CheckpointError, RuntimeError):
            self._engine.save_checkpoint(str(folder), tag=TAG, client_state={"counters": dict(counters)})
            (folder / WORLD).write_text(json.dumps(self._world))

        def write() -> None:
            with refused_by_disk(folder, CheckpointError, RuntimeError):  # which is what torch makes of a full disk
                for state, path in files:
                    torch.save(state, path)

        return write

    def load(self, folder: Path) -> dict[str, Any]:
        """Read what `save` wrote, on any number of workers; give back the counters."""
        if not (folder / TAG).is_dir():
            raise CheckpointError(f"{folder} holds no engine state {TAG!r}; it is incomplete, delete it and run again")
        settings = [{key: group[key] for key in group if key != "params"} for group in self._optimiser.param_groups]
        with self._converted(folder) as source:
            counters = self._read(source)
        if self._universal:
            self._mend(settings)
        if self._average is not None:
            self._average.load(torch.load(folder / AVERAGE, map_location="cpu", weights_only=True))
        return counters

    def _mend(self, settings: Sequence[Mapping[str, Any]]) -> None:
        """Undo what DeepSpeed's universal loading for ZeRO 3 mixes up.

        It gives every group the settings of the first, and every shard one and the same step counter, which would then
        count as many steps at once as there are shards.
        """
        for group, kept in zip(self._optimiser.param_groups, settings, strict=True):
            group.update(kept)
        for state in self._optimiser.state.values():
            if isinstance(state.get("step"), torch.Tensor):
                state["step"] = state["step"].clone()

    @contextlib.contextmanager
    def _converted(self, folder: Path) -> Iterator[Path]:
        """Give the folder to read: the state itself, or what one worker of each machine converted it to."""
        if not self._universal:
            yield folder
            return
        first = int(os.environ.get("LOCAL_RANK", "0")) == 0
        if first:
            convert(folder)
        dist.barrier()
        yield universal_folder(folder)
        dist.barrier()
        if first:
            drop_converted(folder)

    def _read(self, folder: Path) -> dict[str, Any]:
        try:
            _, client = self._engine.load_checkpoint(str(folder), tag=TAG)
        except (OSError, RuntimeError, KeyError, ValueError, EOFError, AssertionError) as error:
            raise CheckpointError(
                f"could not resume from {folder}: {error}; resume with the same ZeRO stage and policy, "
                "or start from its policy folder with parent=..."
            ) from error
        return client["counters"]

    def _place(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        return {key: self._place_value(value, key == EXACT) for key, value in batch.items()}

    def _place_value(self, value: Any, exact: bool) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        dtype = self.dtype if value.is_floating_point() and not exact else value.dtype
        return value.to(self.device, dtype, non_blocking=True)
