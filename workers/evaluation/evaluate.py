"""Evaluate a policy: plan, run what has no row yet, summarise, film, report; `command.py` is this behind Hydra.

The plan and the settings decide the run folder's name, so that the same command goes on where it was stopped and
another one never mixes with it.
"""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from st4vla.platform.contracts import EpisodeSpec
from st4vla.platform.data.disk import refused_by_disk, write_file
from st4vla.platform.errors import ConfigError
from st4vla.workers.evaluation.films import film_chosen
from st4vla.workers.evaluation.ledger import Ledger, plan_digest
from st4vla.workers.evaluation.run import Workers, run_missing
from st4vla.workers.evaluation.settings import EvalConfig
from st4vla.workers.results.official import OfficialTable, official_tables
from st4vla.workers.results.report import ReportInput, failure_reasons, write_report
from st4vla.workers.results.sequential import Decision, decide, in_test_order
from st4vla.workers.results.summary import INFRASTRUCTURE, Summary, summarise
from st4vla.workers.rollout.episode import time_budget
from st4vla.workers.rollout.execution import describe_preset
from st4vla.workers.rollout.worlds import family

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation left behind; `rows` are those that the numbers are made from."""

    folder: Path
    summary: Summary
    rows: Sequence[Mapping[str, Any]] = field(repr=False)
    report: Path
    official: Sequence[OfficialTable] = ()
    decision: Decision | None = None


def plan_episodes(config: EvalConfig) -> list[EpisodeSpec]:
    """Plan all suites; an episode planned twice is run once.

    Raises:
        ConfigError: a suite or a task is unknown, or variants are asked for where there are none.
        EnvError: a variant is unknown.
    """
    worlds = family(config.family_name)
    if config.variants and not worlds.has_variants:
        raise ConfigError(f"variants is {list(config.variants)}; only SimplerEnv's suites have some, leave it out.")
    chosen = (config.tasks, config.episodes, config.seed, *((config.variants,) if config.variants else ()))
    specs = [spec for suite in config.suites for spec in worlds.plan(suite, *chosen)]
    return list({spec.episode_id: spec for spec in specs}.values())


def run_folder(config: EvalConfig, plan: Sequence[EpisodeSpec]) -> Path:
    """Give the folder of this evaluation."""
    digest = plan_digest(plan, config.settings())
    return Path(config.run_dir) / (config.name or f"{config.policy.short_name}-{'-'.join(config.suites)}-{digest[:8]}")


def evaluate(config: EvalConfig) -> Evaluation:
    """Run an evaluation on the Ray that is connected.

    1. Plan the episodes, and make sure that they can be run here.
    2. Open the ledger and run what has no row yet.
    3. Summarise the rows.
    4. Film some failures and successes.
    5. Write the report.
    """
    plan = plan_episodes(config)
    worlds = family(config.family_name)
    worlds.check_policy(config.policy)
    worlds.check(plan)
    folder = run_folder(config, plan)
    with Ledger(folder / "ledger.jsonl", plan, config.settings()) as ledger, Workers(config, plan) as workers:
        if config.retry_failed:
            _void_failed(ledger)
        run_missing(config, workers, plan, ledger, folder)
        decision = None if config.stop is None else decide(in_test_order(plan), ledger.rows_by_id, config.stop)
        rows = _counted(ledger.rows(), decision)
        summary = summarise(rows, retries=ledger.num_retries)
        films = film_chosen(workers.pool, plan, rows, folder, config.films)
    official = official_tables(rows)
    title = f"{config.policy.short_name} on {', '.join(config.suites)}"
    given = ReportInput(title, facts(config, rows, decision), summary, rows, films, official)
    with refused_by_disk(folder):
        write_file(
            folder / "results.json", json.dumps(results(summary, official, decision), indent=1).encode(), sync=True
        )
        return Evaluation(folder, summary, rows, write_report(folder, given), official, decision)


def _void_failed(ledger: Ledger) -> None:
    for row in ledger.rows():
        if row["failure"] in INFRASTRUCTURE:
            ledger.void(row["episode_id"], f"asked to run again: {row['reason']}")


def _counted(rows: Sequence[Mapping[str, Any]], decision: Decision | None) -> list[Mapping[str, Any]]:
    """Leave out what ran beyond the episode at which a sequential test stopped: it depends on how many ran at once."""
    if decision is None or decision.verdict == "open":
        return list(rows)
    counted = set(decision.ids)
    return [row for row in rows if row["episode_id"] in counted]


def results(summary: Summary, official: Sequence[OfficialTable], decision: Decision | None) -> dict[str, Any]:
    """Give what results.json holds."""
    stopped = None if decision is None else {key: value for key, value in asdict(decision).items() if key != "ids"}
    ours = [{key: value for key, value in asdict(table).items() if key != "references"} for table in official]
    return {**summary.plain(), "official": ours, "decision": stopped}


def _executed(config: EvalConfig) -> dict[str, Any]:
    """Say how chunks were carried out, robot by robot where they have presets."""
    if presets := config.presets():
        return {f"chunks on {robot}": describe_preset(preset) for robot, preset in presets.items()}
    return {"actions executed per look": config.options.execute or "the whole chunk"}


def facts(config: EvalConfig, rows: Sequence[Mapping[str, Any]], decision: Decision | None = None) -> dict[str, Any]:
    """Give what a reader of the report wants to know about how it came to be."""
    budget = time_budget(rows)
    latency = config.options.latency
    named = {
        "policy": config.policy.title,
        "policy digest": config.policy.digest(),
        "episodes per suite and task": config.episodes or "the suite's usual number",
        "seed": config.seed,
        **_executed(config),
        "latency": "the clock stops while the policy thinks" if latency is None else f"{latency} (seconds a look)",
        "worker seconds": ", ".join(f"{part} {seconds:.1f}" for part, seconds in budget.items()),
    }
    if config.statistics:
        named["statistics"] = ", ".join(
            f"{key} for {robot}" if robot else key for robot, key in config.statistics.items()
        )
    if latency is not None:
        named["steps held"] = sum(row["held_steps"] for row in rows)
    if config.stop is not None and decision is not None:
        named["sequential test"] = (
            f"success <= {config.stop.low:g} or >= {config.stop.high:g} (errors {config.stop.alpha:g} and "
            f"{config.stop.beta:g}): {decision}; success rates of a stopped run are biased"
        )
    reasons = failure_reasons(rows)
    return named | ({"reasons": "; ".join(f"{why} ({count})" for why, count in reasons)} if reasons else {})
