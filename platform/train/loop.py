"""Run the steps of one stage: read, forward, backward, update, report, validate, save."""

import hashlib
import json
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed as dist

from st4vla.platform.errors import ConfigError
from st4vla.platform.train.background import Begin, Finish, Stopwatch
from st4vla.platform.train.config import TrainConfig
from st4vla.platform.train.engine import TrainEngine
from st4vla.platform.train.folder import ROW
from st4vla.platform.train.guard import Alarms, LossGuard

logger = logging.getLogger(__name__)
Row = dict[str, float]


class Batches(Protocol):
    """The steps' batches in order.

    `cursor` says where the last one taken ended, `unreadable` how many samples of each dataset could not be read.
    """

    def __iter__(self) -> Iterator[dict[str, Any]]: ...

    def __next__(self) -> dict[str, Any]: ...

    def cursor(self) -> dict[str, Any]: ...

    @property
    def unreadable(self) -> Mapping[str, int]: ...


class Reporter(Protocol):
    """Where a worker's news goes: Ray Train, or a folder when one process runs alone."""

    def progress(self, row: Row) -> None:
        """Take one row of figures; only the first worker calls it."""
        ...

    def checkpoint(self, step: int, begin: Begin, row: Row, stands: Finish) -> None:
        """Give every worker a folder for its part, and make all parts one checkpoint once they are written.

        `begin` takes what is to be kept and gives the function that copies and writes it; that one may run beside the
        next steps. `stands` is called when the checkpoint is stored.
        """
        ...


@dataclass(frozen=True)
class Inspection:
    """Something measured on the policy now and then, and always after the last step.

    Attributes:
        name: its figures are told as "name/figure".
        every: steps between two; 0 measures at the end only.
        measure: takes the policy, dropout off and every weight present, and the step; all workers call it in step.
        sometimes: figures that it may lack now and then, e.g. while no answer can be read.
    """

    name: str
    every: int
    measure: Callable[[torch.nn.Module, int], Row]
    sometimes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Worker:
    """One worker's place among all."""

    rank: int = 0
    world_size: int = 1


@dataclass(frozen=True)
class Speed:
    """What tells how well the device is used.

    Attributes:
        flops: gives the operations that a micro-batch's losses cost, forward and backward (`flops.py`).
        peak: the device's bf16 peak in FLOP/s; None where it is not known, as on a CPU.
    """

    flops: Callable[[Mapping[str, Any]], float]
    peak: float | None = None

    def row(self, operations: float, seconds: float) -> Row:
        """Give "flops_per_s" of one worker and, where its peak is known, "mfu", the share of it that this is."""
        rate = operations / seconds if seconds else 0.0
        return {"flops_per_s": rate} | ({"mfu": rate / self.peak} if self.peak else {})


def step_seed(seed: int, step: int, micro: int, rank: int) -> int:
    """Seed one worker's draws in one micro-batch, so that a resumed run draws what an unbroken one would."""
    digest = hashlib.sha256(f"{seed}/{step}/{micro}/{rank}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


class Trainer:
    """The loop over steps; all workers run it in lockstep.

    A step: (1) take a micro-batch, (2) forward its losses, (3) backward, (4) update at this step's rates,
    then now and then (5) report means over workers, (6) inspect (validate, compare gradients), (7) save.
    """

    def __init__(
        self,
        config: TrainConfig,
        engine: TrainEngine,
        batches: Batches,
        reporter: Reporter,
        worker: Worker,
        write_policy: Callable[[Path, torch.nn.Module, int], Finish],
        inspections: Sequence[Inspection],
        guard: LossGuard,
        clock: Callable[[], float] = time.perf_counter,
        speed: Speed | None = None,
    ) -> None:
        self.config = config
        self.engine = engine
        self.batches = batches
        self.reporter = reporter
        self.worker = worker
        self.write_policy = write_policy
        self.inspections = inspections
        self.guard = guard
        self.alarms = Alarms(config.alarms)
        self.clock = clock
        self.speed = speed
        self.meter = Meter()
        self._saving: Stopwatch | None = None

    def run(self, start: int = 0) -> Row:
        """Train from step `start` to the last; give the last row."""
        row: Row = {}
        self.engine.train()
        for step in range(start, self.config.steps):
            rates = self._step(step)
            done = step + 1
            last = done == self.config.steps
            if last or done % self.config.log_every == 0:
                row = self._report(done, rates)
            for one in self.inspections:
                if last or self._due(done, one.every):
                    row |= self._inspect(done, one)
            if last or self._due(done, self.config.saving.every):
                self._save(done, row)
        self._await_copy()
        return row

    @staticmethod
    def _due(done: int, every: int) -> bool:
        return every > 0 and done % every == 0

    def _step(self, step: int) -> dict[str, float]:
        rates: dict[str, float] = {}
        for micro in range(self.config.batch.accumulation):
            began = self.clock()
            batches = next(self.batches)
            self.meter.waited(self.clock() - began)
            if self.speed is not None:
                self.meter.operations += self.speed.flops(batches)
            torch.manual_seed(step_seed(self.config.seed, step, micro, self.worker.rank))
            total, parts = self.engine.losses(batches)
            self.guard.hold(step + 1, batches, total.detach(), parts)
            self.engine.backward(total)
            self._await_copy()
            rates = self.engine.step(step)
            self.guard.stepped(self.engine.norm)
            self.meter.took(self.clock() - began, total.detach().float(), parts)
        return rates

    def _report(self, done: int, rates: Mapping[str, float]) -> Row:
        """Average the losses since the last report over steps and workers, in one all-reduce."""
        micro_batches = self.meter.micro_batches
        self.guard.check()
        means, lost, (wait_s, busy_s, operations) = self.meter.drain(self.worker.world_size, self.batches.unreadable)
        steps = micro_batches / self.config.batch.accumulation
        samples = (self.config.batch.robot + self.config.batch.grounding) * steps
        row = {f"loss/{name}": value for name, value in means.items()}
        row |= {f"learning_rate/{pattern}": rate for pattern, rate in rates.items()}
        row |= {f"unreadable/{name}": float(count) for name, count in lost.items()}
        row |= {
            "step": float(done),
            "samples_per_s": samples / busy_s if busy_s else 0.0,
            "step_s": busy_s / steps,
            "data_wait_share": wait_s / busy_s if busy_s else 0.0,
            "gradient_norm": self.engine.gradient_norm(),
        }
        if self.speed is not None:
            row |= self.speed.row(operations, busy_s)
        row |= self._alarms(done, {"gradient_norm": row["gradient_norm"], "loss": row["loss/total"]})
        self._tell(row)
        return row

    def _alarms(self, done: int, figures: Row) -> Row:
        jumps = self.alarms.look(figures)
        for name, times in jumps.items():
            if self.worker.rank == 0:
                logger.warning("%s is %.4g at step %d, %.1f times its running mean", name, figures[name], done, times)
        return {f"alarm/{name}": times for name, times in jumps.items()}

    def _inspect(self, done: int, one: Inspection) -> Row:
        self.engine.train(False)
        with torch.no_grad(), self.engine.whole_weights() as model:
            row = {f"{one.name}/{figure}": value for figure, value in one.measure(model, done).items()}
        self.engine.train()
        if row:
            self._tell({"step": float(done)} | row)
        return row

    def _save(self, done: int, row: Row) -> None:
        self.guard.check()
        self._check_best(done, row)
        counters = {"step": done, "cursor": self.batches.cursor()}
        watch = Stopwatch(self._tell, done, self.clock)

        def begin(folder: Path) -> Finish:
            parts = [self.engine.save(folder / "engine", counters)]
            with self.engine.whole_weights() as model:
                if self.worker.rank == 0:
                    parts.append(self.write_policy(folder / "policy", model, done))

            def finish() -> None:
                self.engine.snapshot.settle()
                for write in parts:
                    write()
                if self.worker.rank == 0:
                    (folder / ROW).write_text(json.dumps(row))

            return finish

        with watch.holds_up():
            self.reporter.checkpoint(done, begin, row, watch.stands)
        self._saving = watch

    def _await_copy(self) -> None:
        """Wait, before the weights change, until what the last checkpoint took of them is copied."""
        watch, self._saving = self._saving, None
        if watch is not None:
            with watch.holds_up():
                self.engine.snapshot.flush()
            watch.go_on()

    def _check_best(self, done: int, row: Row) -> None:
        """Raise ConfigError where nothing measures the figure that ranks checkpoints: any order would do then."""
        best = self.config.saving.best
        sometimes = {f"{one.name}/{figure}" for one in self.inspections for figure in one.sometimes}
        if best and best not in row.keys() | sometimes:
            measured = ", ".join(name for name in row if name.startswith("validation/")) or "none"
            raise ConfigError(
                f"saving.best is {best!r}, which was not measured at step {done}; validation gives: {measured}. "
                "Name one of these, in a new run_dir, or give it held-out samples to measure."
            )

    def _tell(self, row: Row) -> None:
        if self.worker.rank == 0:
            self.reporter.progress(row)


class Meter:
    """Sum losses and times between two reports without waiting for the device."""

    def __init__(self) -> None:
        self._clear()

    def _clear(self) -> None:
        self.sums: dict[str, torch.Tensor] = {}
        self.counts: Counter[str] = Counter()
        self.micro_batches = 0
        self.wait_s = 0.0
        self.busy_s = 0.0
        self.operations = 0.0

    def waited(self, seconds: float) -> None:
        """Count time spent waiting for data."""
        self.wait_s += seconds

    def took(self, seconds: float, total: torch.Tensor, parts: Mapping[str, torch.Tensor]) -> None:
        """Count one micro-batch, `seconds` long from asking for its data to its update."""
        self.micro_batches += 1
        self.busy_s += seconds
        for name, value in {"total": total, **parts}.items():
            self.sums[name] = self.sums[name] + value if name in self.sums else value
            self.counts[name] += 1

    def drain(
        self, world_size: int, unreadable: Mapping[str, int]
    ) -> tuple[dict[str, float], dict[str, int], tuple[float, ...]]:
        """Give mean losses, counts of unreadable samples, and (wait s, busy s, operations) of one worker; start anew.

        Workers may have seen different parts (a batch without dense labels has no dense loss), so names travel too.
        """
        values = torch.stack(list(self.sums.values())).tolist()
        mine = {name: (value, self.counts[name]) for name, value in zip(self.sums, values, strict=True)}
        own = (mine, dict(unreadable), (self.wait_s, self.busy_s, self.operations))
        everyone = [own]
        if world_size > 1:
            everyone = everyone * world_size
            dist.all_gather_object(everyone, own)
        self._clear()
        means = {}
        for name in dict.fromkeys(name for parts, *_ in everyone for name in parts):
            seen = [parts[name] for parts, *_ in everyone if name in parts]
            means[name] = sum(value for value, _ in seen) / sum(count for _, count in seen)
        lost: Counter[str] = Counter()
        for _, counts, _ in everyone:
            lost.update(counts)
        rest = zip(*(figures for *_, figures in everyone), strict=True)
        return means, lost, tuple(sum(each) / world_size for each in rest)
