"""The `doctor` command: say line by line what works here, and for what does not, the command that mends it."""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from omegaconf import OmegaConf

from st4vla.platform.doctor_checks import CHECKS, Check
from st4vla.platform.machine import process_environment

TIMEOUT_S = 180.0


@dataclass(frozen=True)
class Line:
    """What came of one check.

    Attributes:
        check: the check.
        ok: whether what it looks for works.
        text: what was seen.
        mend: the command that mends it; "" if it works.
    """

    check: Check
    ok: bool
    text: str
    mend: str = ""

    @property
    def mark(self) -> str:
        """One word for the line: ok, MISSING for what is required, absent for what is not."""
        return "ok" if self.ok else "MISSING" if self.check.required else "absent"


def main(cfg: Any) -> int:
    """Run every check, print a line for each, and give 1 if something required is missing."""
    from rich.console import Console
    from rich.progress import track

    console = Console()
    settings = json.dumps(OmegaConf.to_container(cfg.tracking, resolve=True))
    with ThreadPoolExecutor(max_workers=2) as pool:
        lines = pool.map(lambda check: examine(check, settings), CHECKS)
        lines = list(track(lines, "examining", total=len(CHECKS), transient=True, console=console))
    for line in lines:
        style = {"ok": "green", "MISSING": "bold red", "absent": "yellow"}[line.mark]
        console.print(f"[{style}]{line.mark:<8}[/] {line.check.title:<12} ", end="")
        console.print(line.text, markup=False, highlight=False, soft_wrap=True)
        if line.mend:
            console.print(f"{'':<22}mend: {line.mend}", markup=False, highlight=False, soft_wrap=True)
    return verdict(lines)


def verdict(lines: list[Line]) -> int:
    """Give the exit code: 1 if anything required is missing."""
    return int(any(line.mark == "MISSING" for line in lines))


def examine(check: Check, settings: str = "{}", timeout_s: float = TIMEOUT_S) -> Line:
    """Run one check in a process of its own, so that a crash in a driver is a line and not the end."""
    command = [sys.executable, "-m", "st4vla.platform.doctor_checks", check.name, settings]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, env=_environment())
    except subprocess.TimeoutExpired:
        return Line(check, False, f"did not answer in {timeout_s:.0f} s", check.mend)
    report = _last_report(done.stdout)
    if report is None:
        how = f"signal {-done.returncode}" if done.returncode < 0 else f"code {done.returncode}"
        last_words = done.stderr.strip().splitlines()[-1:] or ["no message"]
        return Line(check, False, f"ended with {how}: {last_words[0]}", check.mend)
    return Line(check, report["ok"], report["text"], "" if report["ok"] else report["mend"] or check.mend)


def _environment() -> dict[str, str]:
    return {**os.environ, **process_environment()}


def _last_report(output: str) -> dict[str, Any] | None:
    for line in reversed(output.splitlines()):
        if line.startswith('{"ok"'):
            return json.loads(line)
    return None
