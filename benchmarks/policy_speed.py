"""Time the tiny policy on one core: a training step at batch 32, and one look at two 128 px views.

    python -m benchmarks.policy_speed [--record]

Weights are random, which changes no time. Every figure is the median of the process' own processor time per call: other
processes on the machine lengthen it (shared caches, shared cores), never shorten it. `--record` keeps the latencies.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch

from benchmarks.results import record
from st4vla.platform.contracts import ActionSample, GroundingSample, Observation, Spatial
from st4vla.platform.data.statistics import EmbodimentStatistics, Statistics
from st4vla.platform.policy.config import PolicyConfig
from st4vla.platform.policy.inference import St4vlaPolicy
from st4vla.platform.policy.model import St4vlaModel
from st4vla.platform.policy.processor import Processor
from st4vla.platform.policy.prompt import template_texts
from st4vla.platform.policy.tokenizer import build_tokenizer

BATCH = 32
INSTRUCTION = "put the red cube in the blue bin"


def median_ms(call: Callable[[], object], count: int) -> float:
    call()
    times = []
    for _ in range(count):
        began = time.process_time()
        call()
        times.append(time.process_time() - began)
    return statistics.median(times) * 1000


def build(preset: str) -> tuple[St4vlaModel, Processor]:
    config = PolicyConfig.preset(preset)
    words = [f" {word}" for word in INSTRUCTION.split()]
    tokenizer = build_tokenizer([*template_texts(config.prompt), *words], config.planner.text.vocab_size)
    rows = np.linspace(-1, 1, 14).reshape(2, 7)
    scaling = EmbodimentStatistics(config.statistics_key, Statistics.of(rows), Statistics.of(rows))
    processor = Processor(config, tokenizer, {config.statistics_key: scaling})
    return St4vlaModel(config, processor.token_ids), processor


def training_step(model: St4vlaModel, losses: Callable[[], dict[str, torch.Tensor]]) -> Callable[[], None]:
    def step() -> None:
        model.zero_grad()
        losses()["loss"].backward()

    return step


def measure(model: St4vlaModel, processor: Processor) -> dict[str, float]:
    """Give milliseconds by what was timed."""
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (128, 128, 3), dtype=np.uint8)
    seen = Observation({"third_person": image, "wrist": image}, np.zeros(7, np.float32), INSTRUCTION)
    key, is_pad = model.config.statistics_key, np.zeros(8, bool)
    sample = ActionSample(seen.images, seen.state, INSTRUCTION, np.zeros((8, 7), np.float32), is_pad, key)
    mask, answer = np.zeros((32, 32), np.int8), Spatial(points=((60.0, 60.0),))
    asked = GroundingSample(image, "point", "red cube", answer, None, mask, ("red cube",))
    actions, questions = processor.encode_actions([sample] * BATCH), processor.encode_grounding([asked] * BATCH)
    times = {
        "action step": median_ms(training_step(model, lambda: model.action_loss(actions)), 5),
        "grounding step": median_ms(training_step(model, lambda: model.grounding_loss(questions)), 5),
    }
    policy, batch = St4vlaPolicy(model, processor), processor.encode_observations([seen])
    noise = torch.zeros(1, 8, 7)
    with torch.inference_mode():
        plan, plan_mask = policy.model.plan(batch)

        def system_1() -> torch.Tensor:
            condition = model.condition(plan, plan_mask, batch["images"], batch["state"])
            return model.sample(condition, noise)

        times["System 2"] = median_ms(lambda: model.plan(batch), 40)
        times["System 1"] = median_ms(system_1, 40)
    times["both systems"] = median_ms(lambda: policy.act([seen], ["one"], [(0, 0)]), 40)
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--record", action="store_true", help="keep the latencies in benchmarks/results.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    times = measure(*build("tiny"))
    for name, value in times.items():
        print(f"{name:16} {value:8.1f} ms")
    if options.record:
        command = "python -m benchmarks.policy_speed --record"
        record("tiny, one core, both systems", 3, round(times["both systems"], 1), "ms", "<= 30", command)
        record("tiny, one core, System 1", 3, round(times["System 1"], 1), "ms", "<= 15", command)


if __name__ == "__main__":
    main()
