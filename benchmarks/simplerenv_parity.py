"""Hold the port of SimplerEnv against a folder of recordings of the original, both robots.

Every recording is replayed here and compared; `states_sample.json` beside them is judged; recordings that end in
success count as open-loop replays that ought to succeed here. The figure of a deviation is that of the worst recording.

    python -m benchmarks.simplerenv_parity [FOLDER] [--record]

FOLDER is simplerenv_parity below ST4VLA_DATA unless named; the scenes are those of ST4VLA_ASSETS.
"""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from st4vla.platform.machine import prepare_process

STATES = "states_sample.json"
# What is recorded: the keys of the deviations it is the worst of, its name, unit and goal.
FIGURES = (
    (("robot_mm", "camera_mm"), "robot and camera at reset, apart", "mm", "<= 0.1"),
    (("robot_deg", "camera_deg"), "robot and camera at reset, turned", "degrees", "<= 0.1"),
    (("objects_mm",), "settled objects, apart", "mm", "<= 2"),
    (("objects_deg",), "settled objects, turned", "degrees", "<= 5"),
    (("tcp_mean_mm",), "tool over 40 smooth actions, mean", "mm", "<= 1"),
    (("tcp_max_mm",), "tool over 40 smooth actions, most", "mm", "<= 3"),
    (("success_differs",), "steps of replays judged otherwise", "steps", "<= 0"),
    (("foreground_error",), "foreground at reset, mean error", "of 255", "<= 3"),
)


def main() -> None:
    """Measure, print, and record if asked to."""
    prepare_process()
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("folder", nargs="?", default=Path(os.environ.get("ST4VLA_DATA", "")) / "simplerenv_parity")
    parser.add_argument("--record", action="store_true")
    options = parser.parse_args()
    rows = measure(Path(options.folder))
    for name, value, unit, goal in rows:
        print(f"{name}: {value:.4g} {unit} ({goal})")
    if options.record:
        from benchmarks.results import record

        for name, value, unit, goal in rows:
            record(
                f"SimplerEnv parity: {name}", 5, value, unit, goal, "python -m benchmarks.simplerenv_parity --record"
            )


def measure(folder: Path) -> list[tuple[str, float, str, str]]:
    """Give (name, value, unit, goal) of every figure that the folder allows."""
    from st4vla.envs.simpler.parity import deviations
    from st4vla.envs.simpler.recording import read_recording
    from st4vla.envs.simpler.replay import replay
    from st4vla.envs.simpler.world import SimplerWorld

    world, found, won = SimplerWorld(), [], []
    for file in sorted(folder.glob("*.npz")):
        original = read_recording(file)
        ours = replay(world, original)
        smooth = not original.arrays["success"][-1]
        row = deviations(original, ours)
        print(f"{file.stem}: tool {row['tcp_mean_mm']:.3f} / {row['tcp_max_mm']:.3f} mm", flush=True)
        if smooth:
            found.append(row)
        else:
            won.append(bool(ours.arrays["success"][-1]))
    rows = _worst(found)
    if won:
        rows.append((f"open-loop successes repeated, of {len(won)}", sum(won), "replays", f">= {len(won) - 1}"))
    if (folder / STATES).is_file():
        rows.append(("flags of recorded states that differ", _flags_that_differ(world, folder), "flags", "<= 0"))
    world.close()
    return rows


def _worst(found: Sequence[dict[str, Any]]) -> list[tuple[str, float, str, str]]:
    rows = []
    for keys, name, unit, goal in FIGURES:
        values = [row[key] for row in found for key in keys if row[key] is not None]
        if values:
            rows.append((name, round(max(values), 4), unit, goal))
    overlaps = [row["foreground_iou"] for row in found if row["foreground_iou"] is not None]
    if overlaps:
        rows.append(("foreground at reset, share of overlap", round(min(overlaps), 4), "", ">= 0.97"))
    return rows


def _flags_that_differ(world: Any, folder: Path) -> float:
    from st4vla.envs.simpler.recording import read_states
    from st4vla.envs.simpler.states import judge_states

    states = read_states(folder / STATES)
    verdicts, _ = judge_states(world, states, folder)
    return sum(
        verdict.get(name) != flag
        for state, verdict in zip(states, verdicts, strict=True)
        for name, flag in state.items()
        if isinstance(flag, bool)
    )


if __name__ == "__main__":
    main()
