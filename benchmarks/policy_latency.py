"""Time System 2, System 1 and both, at B = 1, 8 and 32, against an eager reference in the same run.

    python -m benchmarks.policy_latency [--preset st4vla_4b --device cuda --dtype bf16] [--record]

Weights are random, which changes no time. Every figure is the median over calls that take turns with the reference's,
so that a busy machine slows both: wall time on a GPU, on a processor the process' own processor time, one thread.
"Both" is `policy.act`, observations in and physical actions out; a System 1 call is `policy.actions`, a System 2 call
`policy.plan`. Writes a JSON and a bar chart; needs Python, torch, transformers, tokenizers and Pillow, and neither
Ray, Hydra nor ManiSkill.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw

from benchmarks.eager_policy import EagerPolicy
from st4vla.platform.contracts import Observation
from st4vla.platform.data.statistics import EmbodimentStatistics, Statistics
from st4vla.platform.policy.config import PolicyConfig
from st4vla.platform.policy.hollow import cast_weights
from st4vla.platform.policy.inference import St4vlaPolicy, draw_noise
from st4vla.platform.policy.model import St4vlaModel
from st4vla.platform.policy.processor import Processor
from st4vla.platform.policy.prompt import template_texts
from st4vla.platform.policy.tokenizer import build_tokenizer

INSTRUCTIONS = ("put the red cube in the blue bin", "reach the ball", "push the green cylinder to the plate")
BATCHES = (1, 8, 32)
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
LARGEST_TOKENIZER = 4096
# Name of the row, what is measured, at which batch, unit, goal; by preset. Those of the larger one need a GPU.
ROWS = {
    "tiny": (
        ("tiny, one core, both systems", "ms", "both", 1, "<= 30"),
        ("tiny, one core, System 1", "ms", "System 1", 1, "<= 15"),
        ("tiny, one core, both systems over the eager reference", "times", "both", 1, "report"),
    ),
    "st4vla_4b": (
        ("st4vla_4b, both systems", "ms", "both", 1, "<= 25"),
        ("st4vla_4b, both systems over the eager reference", "times", "both", 1, ">= 4"),
        ("st4vla_4b, System 1", "ms", "System 1", 1, "<= 6"),
        ("st4vla_4b, both systems, B=32", "observations/s", "both", 32, ">= 250"),
    ),
}
COMMANDS = {
    "tiny": "python -m benchmarks.policy_latency --record",
    "st4vla_4b": "python -m benchmarks.policy_latency --preset st4vla_4b --device cuda --dtype bf16 --record",
}
Calls = Mapping[str, Callable[[], object]]


def main() -> None:
    options = arguments()
    torch.set_num_threads(1)
    measured = measure(options.preset, options.device, DTYPES[options.dtype], options.batches, options.seconds)
    report = {"preset": options.preset, "device": options.device, "dtype": options.dtype, "milliseconds": measured}
    out = Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    (out / f"policy_latency_{options.preset}.json").write_text(json.dumps(report, indent=2) + "\n")
    draw(report).save(out / f"policy_latency_{options.preset}.png")
    for row in measured:
        print(f"B={row['batch']:<3} {row['what']:9} engine {row['engine']:8.1f} ms   eager {row['eager']:8.1f} ms")
    if options.record:
        keep(options.preset, measured)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--preset", default="tiny")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="fp32", choices=DTYPES)
    parser.add_argument("--batches", type=int, nargs="+", default=BATCHES)
    parser.add_argument("--seconds", type=float, default=4.0, help="time spent on each pair of figures, about")
    parser.add_argument("--out", default="runs/policy_latency")
    parser.add_argument("--record", action="store_true", help="keep the figures in benchmarks/results.json")
    return parser.parse_args()


def build(preset: str, device: str, dtype: torch.dtype) -> tuple[St4vlaModel, Processor]:
    """Build a policy of a preset with random weights and statistics."""
    config = PolicyConfig.preset(preset)
    words = [f" {word}" for line in INSTRUCTIONS for word in line.split()]
    size = min(config.planner.text.vocab_size, LARGEST_TOKENIZER)
    tokenizer = build_tokenizer([*template_texts(config.prompt), *words], size)
    rows = np.linspace(-1, 1, 2 * config.action_dim).reshape(2, -1)
    scaling = EmbodimentStatistics(config.statistics_key, Statistics.of(rows), Statistics.of(rows))
    processor = Processor(config, tokenizer, {config.statistics_key: scaling})
    with torch.device(device):
        model = St4vlaModel(config, processor.token_ids)
    cast_weights(model, device, dtype)
    return model.eval(), processor


def measure(
    preset: str, device: str, dtype: torch.dtype, batches: tuple[int, ...], seconds: float
) -> list[dict[str, Any]]:
    """Give a row per batch and system: milliseconds a call at the median, engine and eager."""
    torch.manual_seed(0)
    model, processor = build(preset, device, dtype)
    policy, eager = St4vlaPolicy(model, processor), EagerPolicy(model, processor)
    rows: list[dict[str, Any]] = []
    with torch.inference_mode():
        for count in batches:
            seen = [observation(model.config, number) for number in range(count)]
            engine_calls, eager_calls = engine_of(policy, seen), eager_of(eager, seen)
            for what in engine_calls:
                pair = {"engine": engine_calls[what], "eager": eager_calls[what]}
                rows.append({"batch": count, "what": what} | alternate(pair, seconds, device))
    return rows


def observation(config: PolicyConfig, number: int) -> Observation:
    rng = np.random.default_rng(number)
    size = config.image_size
    images = {camera: rng.integers(0, 256, (size, size, 3), dtype=np.uint8) for camera in config.cameras}
    state = np.zeros(config.state_dim, np.float32) if config.state_dim else None
    return Observation(images, state, INSTRUCTIONS[number % len(INSTRUCTIONS)])


def engine_of(policy: St4vlaPolicy, seen: list[Observation]) -> Calls:
    plans, names = policy.plan(seen), [str(number) for number in range(len(seen))]
    keys = [(number, 0) for number in range(len(seen))]
    return {
        "System 2": lambda: policy.plan(seen),
        "System 1": lambda: policy.actions(seen, plans, keys),
        "both": lambda: policy.act(seen, names, keys),
    }


def eager_of(eager: EagerPolicy, seen: list[Observation]) -> Calls:
    shape = (eager.config.chunk_length, eager.config.action_dim)
    noise = torch.from_numpy(np.stack([draw_noise((number, 0), shape) for number in range(len(seen))]))
    noise, (plan, mask) = noise.to(eager.device), eager.plan(seen)
    return {
        "System 2": lambda: eager.plan(seen),
        "System 1": lambda: eager.act(seen, plan, mask, noise),
        "both": lambda: eager.act(seen, *eager.plan(seen), noise),
    }


def alternate(calls: Calls, seconds: float, device: str) -> dict[str, float]:
    """Give each call's median in milliseconds; they take turns until the time is up, five times at least."""
    clock = time.perf_counter if device != "cpu" else time.process_time
    times: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()
    until = time.perf_counter() + seconds
    while time.perf_counter() < until or len(times["engine"]) < 5:
        for name, call in calls.items():
            wait_for(device)
            began = clock()
            call()
            wait_for(device)
            times[name].append(clock() - began)
    return {name: round(1000 * statistics.median(taken), 3) for name, taken in times.items()}


def wait_for(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize()


def keep(preset: str, measured: list[dict[str, Any]]) -> None:
    """Record the preset's rows, and those that need a GPU as not measured where nobody has measured them."""
    from benchmarks.results import read_results, record

    found = {(row["what"], row["batch"]): row for row in measured}
    needs = {"st4vla_4b": "gpu"}
    for name, unit, what, count, goal in ROWS.get(preset, ()):
        value = in_unit(found[what, count], unit)
        record(name, 3, value, unit, goal, COMMANDS[preset], needs.get(preset, ""))
    known = {row["name"] for row in read_results()}
    for name, unit, _, _, goal in ROWS["st4vla_4b"]:
        if name not in known:
            record(name, 3, None, unit, goal, COMMANDS["st4vla_4b"], "gpu")


def in_unit(row: Mapping[str, Any], unit: str) -> float:
    if unit == "times":
        return round(row["eager"] / row["engine"], 2)
    return round(row["engine"] if unit == "ms" else 1000 * row["batch"] / row["engine"], 1)


def draw(report: Mapping[str, Any]) -> Image.Image:
    """Draw a bar for each figure, the engine's over the reference's."""
    rows, left, height = report["milliseconds"], 150, 46
    picture = Image.new("RGB", (900, 60 + height * len(rows)), (255, 255, 255))
    pen = ImageDraw.Draw(picture)
    title = f"{report['preset']} on {report['device']}, {report['dtype']}: milliseconds a call (median)"
    pen.text((10, 10), title, fill=(0, 0, 0), font_size=16)
    longest = max(max(row["engine"], row["eager"]) for row in rows)
    for number, row in enumerate(rows):
        top = 45 + number * height
        pen.text((10, top + 8), f"B={row['batch']}, {row['what']}", fill=(0, 0, 0), font_size=14)
        for place, (name, color) in enumerate((("engine", (38, 110, 190)), ("eager", (190, 190, 190)))):
            width = max(2, int(560 * row[name] / longest))
            pen.rectangle((left, top + 18 * place, left + width, top + 18 * place + 15), fill=color)
            label = f"{row[name]:.1f} {name}"
            pen.text((left + width + 6, top + 18 * place), label, fill=(0, 0, 0), font_size=12)
    return picture


if __name__ == "__main__":
    main()
