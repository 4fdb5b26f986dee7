"""Run the episodes of a plan that have no row: who works on what, and what becomes of each outcome."""

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from st4vla.platform.contracts import EpisodeSpec
from st4vla.platform.errors import WorkerLost
from st4vla.workers.evaluation.ledger import Ledger
from st4vla.workers.evaluation.settings import EvalConfig
from st4vla.workers.results.sequential import decide, in_test_order
from st4vla.workers.results.summary import INFRASTRUCTURE
from st4vla.workers.rollout.actors import (
    WorkerSetup,
    default_workers,
    rollout_actor_factory,
    start_inference,
)
from st4vla.workers.rollout.episode import Rollout, failed_result
from st4vla.workers.rollout.pool import Outcome, Pool
from st4vla.workers.rollout.progress import EpisodeProgress
from st4vla.workers.rollout.recordings import save_recording
from st4vla.workers.rollout.schedule import Lanes
from st4vla.workers.rollout.worlds import family

log = logging.getLogger(__name__)


class Workers:
    """The rollout actors of one evaluation, started when first needed: a finished evaluation starts none."""

    def __init__(self, config: EvalConfig, plan: Sequence[EpisodeSpec]):
        self._config = config
        self._plan = plan
        self._pool: Pool[EpisodeSpec] | None = None
        self._inference: list[Any] = []
        self.retried: list[tuple[EpisodeSpec, str]] = []

    def pool(self) -> Pool[EpisodeSpec]:
        """Give the pool, started at the first call.

        Raises:
            PolicyError: the policy's server does not answer.
        """
        if self._pool is None:
            self._config.policy.check()
            self._pool = self._start()
        return self._pool

    def _start(self) -> Pool[EpisodeSpec]:
        config = self._config
        number = default_workers(config.workers)
        self._inference = start_inference(
            config.policy, config.inference, number + config.gpu_workers.number, config.gpu_workers
        )
        make = rollout_actor_factory(
            self._setup(), number, self._inference, config.inference.batch.timeout_s, config.gpu_workers
        )
        return Pool(
            make,
            number + config.gpu_workers.number,
            config.pool,
            on_retry=lambda spec, why: self.retried.append((spec, why)),
            spent=lambda rollout: isinstance(rollout, Rollout) and rollout.spent,
        )

    def _setup(self) -> WorkerSetup:
        config, worlds = self._config, family(self._config.family_name)
        keys = {(worlds.key_of(spec), worlds.scene_of(spec)) for spec in self._plan}
        return WorkerSetup(
            policy=config.policy,
            options=config.options.ending(worlds.stop_on_success),
            world=config.family_name,
            # Where actors differ in the world they need, each builds its own with its first episode.
            first=self._plan[0] if len(keys) == 1 else None,
            looks=config.films > 0 or config.policy.looks,
            watch=config.watch,
            max_worlds=config.max_worlds,
            inference=config.inference,
            statistics=config.statistics,
        )

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, *_: object) -> None:
        import ray

        if self._pool is not None:
            self._pool.close()
        for actor in self._inference:
            ray.kill(actor, no_restart=True)


def run_missing(
    config: EvalConfig, workers: Workers, plan: Sequence[EpisodeSpec], ledger: Ledger, folder: Path
) -> None:
    """Run the episodes that have no row; each row is on disk before the next outcome is taken.

    Raises:
        WorkerLost: so many episodes in a row were ended by infrastructure that the rest would be, too.
    """
    is_over = _stopping_rule(config, plan, ledger)
    missing = ledger.missing(plan)
    if not missing or is_over():
        return
    if len(missing) < len(plan):
        log.info("%s holds %d of %d episodes; running the rest", ledger.path, len(plan) - len(missing), len(plan))
    work = _queue(config, missing)
    breaker = Breaker(config.give_up_after)
    with EpisodeProgress("evaluate", len(plan), done=ledger.rows()) as progress:
        for outcome in workers.pool().run(work.take, _submit, infrastructure_reason):
            _note_retries(workers, ledger)
            row = _keep(outcome, ledger, folder)
            work.finished(outcome.item, row["wall_s"])
            progress.add(row)
            breaker.add(row)
            if is_over():
                work.clear()


def _queue(config: EvalConfig, missing: Sequence[EpisodeSpec]) -> Lanes[EpisodeSpec]:
    """Sort the work into lanes, one for each world and task; a sequential test wants one lane, in its own order."""
    if config.stop is not None:
        return Lanes(in_test_order(missing), lambda spec: "")
    worlds = family(config.family_name)
    return Lanes(missing, lambda spec: (worlds.key_of(spec), worlds.scene_of(spec), spec.task))


def _stopping_rule(config: EvalConfig, plan: Sequence[EpisodeSpec], ledger: Ledger) -> Callable[[], bool]:
    stop = config.stop
    if stop is None:
        return lambda: False
    order = in_test_order(plan)
    return lambda: decide(order, ledger.rows_by_id, stop).verdict != "open"


def _note_retries(workers: Workers, ledger: Ledger) -> None:
    for spec, reason in workers.retried:
        ledger.event("retry", episode_id=spec.episode_id, reason=reason)
    workers.retried.clear()


class Breaker:
    """Stop a run whose episodes fail one after another for reasons that are not the policy's skill."""

    def __init__(self, limit: int):
        self._limit = limit
        self._in_a_row = 0

    def add(self, row: Mapping[str, Any]) -> None:
        """Count one row.

        Raises:
            WorkerLost: the limit is reached.
        """
        self._in_a_row = self._in_a_row + 1 if row["failure"] in INFRASTRUCTURE else 0
        if self._limit and self._in_a_row >= self._limit:
            raise WorkerLost(
                f"{self._in_a_row} episodes in a row were ended by infrastructure, the last by {row['failure']}: "
                f"{row['reason']} Their rows are kept. Mend the cause and run the same command with "
                "retry_failed=true, or set give_up_after=0 to go on regardless."
            )


def _submit(actor: Any, spec: EpisodeSpec) -> Any:
    return actor.run.remote(spec)


def infrastructure_reason(rollout: Rollout) -> str:
    """Say why an episode deserves another try, "" if it does not."""
    return rollout.result.reason if rollout.result.failure in INFRASTRUCTURE else ""


def _keep(outcome: Outcome[EpisodeSpec], ledger: Ledger, folder: Path) -> Mapping[str, Any]:
    spec = outcome.item
    rollout = outcome.value or Rollout(failed_result(spec, outcome.failure, outcome.reason), None)
    if rollout.recording is not None:
        save_recording(recording_path(folder, spec.episode_id), rollout.recording)
    return ledger.append(spec, rollout.result)


def recording_path(folder: Path, episode_id: str) -> Path:
    """Say where an episode's recording lies."""
    return folder / "recordings" / f"{episode_id}.npz"
