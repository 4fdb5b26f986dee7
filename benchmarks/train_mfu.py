"""Measure how well a stage-2 step uses its GPU, and how much faster it is than an eager, padded loop without overlap.

    python -m benchmarks.train_mfu [--record]
    python -m benchmarks.train_mfu --preset tiny --device cpu --steps 2     # tries the script; no figure

The preset's weights are random and its pictures noise, which changes no time. Both loops train on the same samples, in
batches of one GPU's share of the published 256 + 64 on 16, recompute the planner's activations (one card holds here
what 16 share) and are timed in one run, one after the other: two sets of optimiser state do not fit on a card.

    house       `StepBatches` ahead of the step -> packed rows -> `TrainEngine`: bf16 with fp32 masters, DeepSpeed
    reference   samples read and encoded between the steps, blocking copies, padded rows, transformers' eager attention,
                torch's AdamW one weight at a time, the loss waited for at every step; all in bf16 without masters,
                which favours it

MFU counts what the losses need (`platform/train/flops.py`), neither padding nor what is recomputed.
"""

import argparse
import json
import multiprocessing
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import numpy as np
import torch

from benchmarks.policy_latency import DTYPES, INSTRUCTIONS, build
from st4vla.platform.contracts import ActionSample, GroundingSample, Spatial
from st4vla.platform.data.mixture import Loader, LoaderConfig, Mixture
from st4vla.platform.policy.config import PolicyConfig
from st4vla.platform.policy.model import St4vlaModel
from st4vla.platform.policy.packing import allow_packing
from st4vla.platform.train.alone import join_group_of_one
from st4vla.platform.train.batches import StepBatches
from st4vla.platform.train.config import TrainConfig
from st4vla.platform.train.engine import TrainEngine
from st4vla.platform.train.flops import FlopCount, peak_flops
from st4vla.platform.train.objective import Objective
from st4vla.platform.train.optimiser import parameter_groups
from st4vla.platform.train.predict import placed
from st4vla.platform.train.stage import without_padding

COMMAND = "python -m benchmarks.train_mfu --record"
MFU = "st4vla_4b stage 2 on an H100: model FLOPs utilisation"
RATIO = "st4vla_4b stage 2 on an H100: over an eager, padded reference"
PUBLISHED, CARD = "st4vla_4b", "H100"
PICTURES = 8
Step = Callable[[], float]


def main(words: list[str] | None = None) -> dict[str, Any]:
    options = arguments(words)
    card = torch.cuda.get_device_name() if options.device == "cuda" else "cpu"
    figure = options.preset == PUBLISHED and CARD in card
    if options.record and not figure:
        raise SystemExit(f"the rows are of {PUBLISHED} on an {CARD}; {options.preset} on {card} is not recorded")
    ours, theirs = (apart(loop, options) for loop in (house, reference))
    found = {"preset": options.preset, "card": card, **shares(ours, theirs, peak_flops(card))}
    print(json.dumps(found, indent=2))
    if not figure:
        print(f"not a figure: those are of {PUBLISHED} on an {CARD}")
    if options.record:
        from benchmarks.results import record

        record(MFU, 4, round(100 * found["mfu"], 1), "%", ">= 35", COMMAND, "gpu")
        record(RATIO, 4, round(found["ratio"], 2), "times", ">= 2", COMMAND, "gpu")
    return found


def arguments(words: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--preset", default=PUBLISHED)
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--dtype", choices=DTYPES, help="bf16 on a GPU and fp32 on a CPU unless given")
    parser.add_argument("--robot", type=int, default=16, help="robot samples of a step")
    parser.add_argument("--grounding", type=int, default=4, help="questions of a step")
    parser.add_argument("--steps", type=int, default=20, help="steps that are timed")
    parser.add_argument("--warm-up", type=int, default=5, help="steps before them")
    parser.add_argument("--recompute", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--record", action="store_true", help="keep the figures in benchmarks/results.json")
    options = parser.parse_args(words)
    options.dtype = options.dtype or ("bf16" if options.device == "cuda" else "fp32")
    return options


def apart(loop: Callable[[argparse.Namespace], dict[str, float]], options: argparse.Namespace) -> dict[str, float]:
    """Run a loop, on a GPU in a process of its own, so that the next one finds the whole memory."""
    if options.device == "cpu":
        return loop(options)
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as one:
        return one.submit(loop, options).result()


def shares(ours: Mapping[str, float], theirs: Mapping[str, float], peak: float | None) -> dict[str, Any]:
    """Give samples a second of both, their ratio and the house's MFU; None where the device's peak is not known."""
    rate = ours["operations"] / ours["seconds"]
    speeds = [one["samples"] / one["seconds"] for one in (ours, theirs)]
    return {
        "samples_per_s": {"house": round(speeds[0], 3), "reference": round(speeds[1], 3)},
        "ratio": speeds[0] / speeds[1],
        "flops_per_s": rate,
        "mfu": rate / peak if peak else None,
        "memory_gib": {"house": ours["memory_gib"], "reference": theirs["memory_gib"]},
    }


def recipe(options: argparse.Namespace) -> TrainConfig:
    """Compose the preset's stage-2 recipe, with one card's batch."""
    from omegaconf import OmegaConf

    from st4vla.platform.cli import compose_command
    from st4vla.workers.training.command import read_job

    words = ["stage=action", f"policy={options.preset}", "data=synthetic", "packing=true"]
    if options.device == "cpu":
        words.append("deepspeed.overlap_communication=false")
    words += [f"batch.robot={options.robot}", f"batch.grounding={options.grounding}"]
    words += [f"deepspeed={'zero2' if options.dtype == 'bf16' else 'zero0'}", f"deepspeed.precision={options.dtype}"]
    settings: Any = OmegaConf.to_container(compose_command("train", words), resolve=True)
    return read_job(settings).train


def house(options: argparse.Namespace) -> dict[str, float]:
    """Time the platform's own step."""
    config, device = recipe(options), torch.device(options.device)
    model, processor = policy_of(options)
    allow_packing(model.planner.vlm)
    ways = {"robot": processor.encode_actions, "grounding": processor.encode_grounding}
    encoders = {name: without_padding(encode) for name, encode in ways.items()}
    join_group_of_one(device)
    engine = TrainEngine(model, config, device, 1)
    engine.train()
    count, places = FlopCount(model.config, model), iter(range(options.warm_up + options.steps))
    with StepBatches(mixtures(model.config), encoders, config.batch) as batches:

        def step() -> float:
            made = next(batches)
            total, _ = engine.losses(made)
            engine.backward(total)
            engine.step(next(places))
            return count(made)

        return timed(step, options)


def reference(options: argparse.Namespace) -> dict[str, float]:
    """Time the loop without any of it."""
    config = recipe(options)
    model, processor = policy_of(options)
    model.planner.vlm.model.language_model.config._attn_implementation = "eager"
    objective = Objective(model.train(), config.loss_weights)
    groups = parameter_groups(model.named_parameters(), config.optimiser)
    optimiser = torch.optim.AdamW(groups, betas=config.optimiser.betas, eps=config.optimiser.eps, foreach=False)
    encoders = {"robot": processor.encode_actions, "grounding": processor.encode_grounding}
    read = {name: samples(mixture, config, name) for name, mixture in mixtures(model.config).items()}
    count = FlopCount(model.config, model)

    def step() -> float:
        made = {name: encode(next(read[name])) for name, encode in encoders.items()}
        total, _ = objective({name: placed(batch, model) for name, batch in made.items()})
        total.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.optimiser.clip_norm, foreach=False)
        optimiser.step()
        optimiser.zero_grad()
        float(total)
        return count(made)

    return timed(step, options)


def policy_of(options: argparse.Namespace) -> tuple[St4vlaModel, Any]:
    """Build the policy with random weights, recomputing its planner's activations where asked for."""
    torch.manual_seed(0)
    model, processor = build(options.preset, options.device, DTYPES[options.dtype])
    if options.recompute:
        model.planner.vlm.activation_checkpointing_enable()
    return model, processor


def timed(step: Step, options: argparse.Namespace) -> dict[str, float]:
    """Give seconds, samples and operations of the timed steps, and the most memory that was held."""
    gpu = options.device == "cuda"
    for _ in range(options.warm_up):
        step()
    if gpu:
        torch.cuda.synchronize()
    began, operations = time.perf_counter(), 0.0
    for _ in range(options.steps):
        operations += step()
    if gpu:
        torch.cuda.synchronize()
    seconds, count = time.perf_counter() - began, options.steps * (options.robot + options.grounding)
    memory = torch.cuda.max_memory_allocated() / 2**30 if gpu else 0.0
    return {"seconds": seconds, "samples": count, "operations": operations, "memory_gib": round(memory, 1)}


def samples(mixture: Mixture, config: TrainConfig, name: str) -> Iterator[Any]:
    """Read batches of one kind when they are asked for."""
    return iter(Loader(mixture, LoaderConfig(getattr(config.batch, name), prefetch=0)))


def mixtures(config: PolicyConfig) -> dict[str, Mixture]:
    """Give endless robot samples and questions of the policy's shapes."""
    return {"robot": Mixture([Moments(config)], seed=0), "grounding": Mixture([Questions(config)], seed=1)}


class Synthetic:
    """A source of the policy's shapes with noise for pictures."""

    def __init__(self, config: PolicyConfig) -> None:
        self.config = config
        shape = (PICTURES, config.image_size, config.image_size, 3)
        self.pictures = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)

    def __len__(self) -> int:
        return 10_000


class Moments(Synthetic):
    """Demonstrations' moments, their actions noise, too."""

    name = "synthetic/robot"

    def load(self, item: int, rng: np.random.Generator) -> ActionSample:
        config = self.config
        images = {camera: self.pictures[(item + place) % PICTURES] for place, camera in enumerate(config.cameras)}
        state = rng.normal(size=config.state_dim).astype(np.float32) if config.state_dim else None
        actions = rng.uniform(-1, 1, (config.chunk_length, config.action_dim)).astype(np.float32)
        is_pad = np.zeros(config.chunk_length, bool)
        return ActionSample(images, state, wording(item), actions, is_pad, config.statistics_key)


class Questions(Synthetic):
    """Questions for boxes, points and traces, of different lengths."""

    name = "synthetic/grounding"

    def load(self, item: int, rng: np.random.Generator) -> GroundingSample:
        places = np.sort(rng.uniform(0, self.config.image_size - 1, (8, 2)), axis=0).round().tolist()
        points = tuple((x, y) for x, y in places)
        box = (*points[0], *points[-1])
        picture, words = self.pictures[item % PICTURES], wording(item)
        if item % 3 == 0:
            return GroundingSample(picture, "box", words, Spatial(words, box=box))
        if item % 3 == 1:
            return GroundingSample(picture, "point", words, Spatial(words, points=points[:1]))
        return GroundingSample(picture, "trace", words, Spatial(words, trajectory=points))


def wording(item: int) -> str:
    """Give an instruction of one to three parts."""
    return ", then ".join(INSTRUCTIONS[(item + part) % len(INSTRUCTIONS)] for part in range(1 + item % 3))


if __name__ == "__main__":
    main()
