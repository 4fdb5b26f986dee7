"""The `checkpoint` command: import a published checkpoint, export one of ours, or show what one holds."""

import json
from pathlib import Path
from typing import Any

from st4vla.platform.errors import ConfigError
from st4vla.platform.published.bring_in import ImportConfig, bring_in
from st4vla.platform.published.summary import PARTS, Summary, summarise
from st4vla.platform.published.write_out import write_out

ACTIONS = ("import", "export", "show")


def main(cfg: Any) -> int:
    """Run `st4vla checkpoint`."""
    from omegaconf import OmegaConf

    settings: Any = OmegaConf.to_container(cfg, resolve=True)
    action, source, out = settings["action"], str(settings["source"]), settings["out"]
    if action not in ACTIONS:
        raise ConfigError(f"checkpoint was asked to {action!r}; expected one of {', '.join(ACTIONS)}")
    if action != "show" and not out:
        raise ConfigError(f"checkpoint {action} needs --out FOLDER")
    if action == "import":
        print_summary(summarise(str(bring_in(source, out, read_options(settings)))), out)
    elif action == "export":
        write_out(source, out)
        print(f"{source} is in {out} in the published layout")
    else:
        print_summary(summarise(source), source)
    return 0


def read_options(settings: dict[str, Any]) -> ImportConfig:
    """Make the checked options of an import; what was left out is ""."""
    names = ("base_vlm", "weights", "dtype", "action_side")
    given = {name: settings[name] for name in names if settings[name]}
    return ImportConfig(**given, embodiment=settings["acts_for"] or "", settings=settings["settings"] or {})


def print_summary(summary: Summary, source: str | Path) -> None:
    """Print tables of what a checkpoint or a preset holds."""
    from rich.console import Console
    from rich.table import Table

    table = Table("module", "parameters", "in the folder", "what it is", title=f"{source}: {summary.name}")
    for part, count in summary.counts.items():
        stored = summary.stored.get(part)
        here = "" if part in ("total", "dino") or not summary.stored else f"{stored:,}" if stored else "none"
        table.add_row(part, f"{count:,}", here, PARTS.get(part, ""))
    facts = Table(show_header=False)
    for name, value in facts_of(summary).items():
        facts.add_row(name, value)
    console = Console()
    console.print(table)
    console.print(facts)


def facts_of(summary: Summary) -> dict[str, str]:
    """Give everything but the counts, in words."""
    spec = summary.spec
    facts = {
        "kind": summary.kind,
        "sees": f"{', '.join(spec.cameras) or 'no camera'} at {spec.image_size} px, state {spec.state_dim}",
        "acts": f"{spec.chunk_length} x {spec.action_dim} {spec.action_form} at {spec.control_hz:g} Hz",
        "prompt": summary.prompt,
        "semantics": ", ".join(f"{name} {value}" for name, value in summary.semantics.items()),
        "weights": ", ".join(summary.dtypes),
        "statistics": "\n".join(f"{key}: {scaling}" for key, scaling in summary.statistics.items()),
    }
    if summary.statistics or summary.lineage:
        facts["acts for"] = spec.statistics_key
    if summary.lineage:
        facts["parent"] = summary.lineage.parent
        facts["data"] = ", ".join(summary.lineage.data)
        facts["notes"] = json.dumps(dict(summary.lineage.notes), indent=1, default=str) if summary.lineage.notes else ""
    return {name: value for name, value in facts.items() if value}
