"""Write a ladder's page, plots and numbers, and print its table."""

import io
import json
from collections.abc import Sequence
from importlib import resources
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import Any

from st4vla.workers.evaluation.ledger import read_rows as read_ledger_rows
from st4vla.workers.ladder.outcome import (
    Comparison,
    LadderResults,
    arm_result,
    compare,
    similarity_curve,
)
from st4vla.workers.ladder.plan import Arm, Ladder
from st4vla.workers.results.report import as_data_url, percent
from st4vla.workers.training.progress import read_rows

COLOURS = ("#9a9a9a", "#7a9e7e", "#3b6ea5", "#d98032", "#8064a2", "#c0504d")


def write_ladder(ladder: Ladder) -> tuple[LadderResults, Path]:
    """Gather what the steps left, and write `ladder.html`, `ladder.json` and `plots/*.png` into the run's folder."""
    results = gather(ladder)
    plots = {"success": plot_success(ladder.arms, results)}
    if any(curve for curves in results.similarity.values() for curve in curves.values()):
        plots["similarity"] = plot_similarity(ladder.arms, results)
    (ladder.run / "plots").mkdir(parents=True, exist_ok=True)
    for name, png in plots.items():
        (ladder.run / "plots" / f"{name}.png").write_bytes(png)
    page = ladder.run / "ladder.html"
    page.write_text(render(ladder, results, plots), encoding="utf-8")
    page.with_suffix(".json").write_text(json.dumps(results.plain(), indent=1))
    return results, page


def gather(ladder: Ladder) -> LadderResults:
    """Read every arm's ledgers and training rows, and compare neighbours, and the last with the first."""
    names = [arm.name for arm in ladder.arms]
    ledgers = {
        name: {seed: read_ledger_rows(ladder.folder(seed, "eval") / name / "ledger.jsonl")[1] for seed in ladder.seeds}
        for name in names
    }
    pairs = [*pairwise(names)] + ([(names[0], names[-1])] if len(names) > 2 else [])
    rows = {name: {seed: read_rows(ladder.folder(seed, name)) for seed in ladder.seeds} for name in names}
    curves = {name: {str(seed): similarity_curve(part) for seed, part in parts.items()} for name, parts in rows.items()}
    chances = [
        value for parts in rows.values() for part in parts.values() for _, value in similarity_curve(part, "chance")
    ]
    return LadderResults(
        tuple(arm_result(name, ledgers[name]) for name in names),
        tuple(compare(better, worse, ledgers) for worse, better in pairs),
        curves,
        fmean(chances) if chances else float("nan"),
    )


def claim(ladder: Ladder, one: Comparison) -> str:
    """Word a comparison as the paper's claim."""
    titles = {arm.name: arm.title.removeprefix("+ ") for arm in ladder.arms}
    return f"{titles[one.better]} does better than {titles[one.worse]}"


def render(ladder: Ladder, results: LadderResults, plots: dict[str, bytes]) -> str:
    """Fill the page's template; everything is embedded."""
    import jinja2

    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    environment.filters |= {"percent": percent, "points": points}
    template = (resources.files("st4vla.workers.ladder") / "page.html").read_text(encoding="utf-8")
    embedded = {"similarity": "", **{name: as_data_url(png, "image/png") for name, png in plots.items()}}
    arms = [
        {"title": arm.title, "means": arm.means, "result": result}
        for arm, result in zip(ladder.arms, results.arms, strict=True)
    ]
    comparisons = [{"claim": claim(ladder, one), "result": one} for one in results.comparisons]
    return environment.from_string(template).render(
        title=f"The ladder at size {ladder.settings['preset']}",
        lead=lead(ladder, results),
        arms=arms,
        tasks=list(results.arms[0].by_task),
        seeds=ladder.seeds,
        comparisons=comparisons,
        plots=embedded,
        probe=ladder.settings["similarity"]["samples"],
        energy=ladder.settings["similarity"]["energy"],
        equal=equalities(ladder),
    )


def lead(ladder: Ladder, results: LadderResults) -> str:
    """Say in two sentences which claims held and which did not."""
    told = {verdict: [] for verdict in ("held", "not shown", "reversed")}
    for one in results.comparisons:
        told[one.verdict].append(claim(ladder, one))
    words = {"held": "held at this size", "not shown": "could not be shown", "reversed": "came out the other way round"}
    parts = [f"{'; '.join(claims)}: {words[verdict]}." for verdict, claims in told.items() if claims]
    return " ".join(parts)


def equalities(ladder: Ladder) -> list[str]:
    """List what the arms share and what only some have."""
    one = ladder.settings
    grounded = ", ".join(arm.title for arm in ladder.arms if arm.stage_1)
    steps = one["stage_2"]["steps"]
    tasks, seeds = ", ".join(one["tasks"]), ", ".join(map(str, ladder.seeds))
    return [
        f"Data: {one['demonstrations']} demonstrations of each of {tasks}; {one['stills']} still scenes for questions.",
        f"Weights: per seed ({seeds}), all arms start from the same ungrounded weights and tokenizer.",
        f"Stage 2: {steps} steps for every arm, the same robot samples in the same order, and the same architecture.",
        f"Stage 1: {one['stage_1']['steps']} more steps on questions alone, for {grounded or 'no arm'} only. That is "
        "extra compute which the other arms do not get.",
        f"Evaluation: {one['episodes']} unseen layouts per task and seed, the same for every arm, "
        f"{one['execute']} actions executed between two looks.",
    ]


def points(share: float) -> str:
    """Write a difference of shares as signed points."""
    return f"{100 * share:+.0f}"


def plot_success(arms: Sequence[Arm], results: LadderResults) -> bytes:
    """Plot every arm's success with its interval, and a dot for each seed."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 1.2 + 0.5 * len(arms)), layout="constrained")
    axes = figure.subplots()
    for place, (result, colour) in enumerate(zip(results.arms, COLOURS, strict=False)):
        axes.barh(place, result.pooled.value, color=colour, height=0.6)
        axes.plot([result.pooled.low, result.pooled.high], [place, place], color="#222222")
        axes.plot(list(result.by_seed.values()), [place] * len(result.by_seed), "o", color="#222222", markersize=4)
    axes.set_yticks(range(len(arms)), [arm.title for arm in arms])
    axes.invert_yaxis()
    axes.set(xlim=(0, 1), xlabel="success (line: Wilson 95 % over all seeds; dots: seeds)")
    return as_png(figure)


def plot_similarity(arms: Sequence[Arm], results: LadderResults) -> bytes:
    """Plot the gradient similarity over stage 2: thin lines are seeds, the thick one is their mean."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.6), layout="constrained")
    axes = figure.subplots()
    for arm, colour in zip(arms, COLOURS, strict=False):
        curves = [dict(curve) for curve in results.similarity[arm.name].values() if curve]
        for curve in curves:
            axes.plot(list(curve), list(curve.values()), color=colour, linewidth=0.7, alpha=0.6)
        steps = sorted(set.intersection(*(set(curve) for curve in curves))) if curves else []
        means = [fmean(curve[step] for curve in curves) for step in steps]
        axes.plot(steps, means, color=colour, linewidth=2, label=arm.title)
    axes.axhline(results.chance, color="#222222", linestyle=":", linewidth=1)
    axes.set(xlabel="stage 2 step", ylabel="PSS", ylim=(0, None))
    axes.legend(fontsize=8, frameon=False)
    return as_png(figure)


def as_png(figure: Any) -> bytes:
    """Draw a figure."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    return buffer.getvalue()


def print_ladder(console: Any, results: LadderResults, page: Path) -> None:
    """Print the arms, the comparisons, and where the page lies."""
    from rich.table import Table

    arms = Table("arm", "success", *results.arms[0].by_task, title="success, with Wilson 95 % interval")
    for arm in results.arms:
        arms.add_row(arm.name, str(arm.pooled), *(str(rate) for rate in arm.by_task.values()))
    gains = Table("arm", "over", "gain, points", "verdict", title="paired gains, with 95 % interval")
    for one in results.comparisons:
        gain = f"{points(one.difference)} [{points(one.low)}, {points(one.high)}]"
        gains.add_row(one.better, one.worse, gain, one.verdict)
    console.print(arms)
    console.print(gains)
    console.print(f"page: {page}", soft_wrap=True, highlight=False)
