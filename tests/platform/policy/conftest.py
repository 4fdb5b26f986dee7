"""One micro policy, seeded, and samples to feed it."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from st4vla.platform.contracts import ActionSample, GroundingSample, Observation, Spatial
from st4vla.platform.data.statistics import EmbodimentStatistics, Statistics
from st4vla.platform.policy.config import PolicyConfig
from st4vla.platform.policy.model import St4vlaModel
from st4vla.platform.policy.processor import Processor
from st4vla.platform.policy.prompt import template_texts
from st4vla.platform.policy.tokenizer import build_tokenizer

WORDS = ["reach", "push", "pick", "up", "put", "the", "on", "in", "red", "blue", "cube", "ball", "bin"]


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def config() -> PolicyConfig:
    return PolicyConfig.from_yaml(Path(__file__).parent / "micro.yaml")


@pytest.fixture(scope="session")
def processor(config: PolicyConfig) -> Processor:
    tokenizer = build_tokenizer([*template_texts(config.prompt), *(f" {w}" for w in WORDS)], 512)
    steps = np.linspace(-1, 1, 5)[:, None] * np.array([0.05, 0.05, 0.05, 0.2, 0.2, 0.2, 1])
    statistics = EmbodimentStatistics("tabletop_panda", Statistics.of(steps), Statistics.of(steps))
    return Processor(config, tokenizer, {"tabletop_panda": statistics})


@pytest.fixture(scope="session")
def model(config: PolicyConfig, processor: Processor) -> St4vlaModel:
    """A seeded model whose expert's last layer is not zero, so that its actions depend on what it sees."""
    torch.manual_seed(0)
    model = St4vlaModel(config, processor.token_ids)
    torch.nn.init.normal_(model.action_expert.final_layer.linear.weight, std=0.1)
    return model.eval()


@pytest.fixture
def observations() -> list[Observation]:
    return [observation(seed) for seed in range(8)]


@pytest.fixture
def make_image() -> Callable[..., np.ndarray]:
    """Noise of a seed and a size."""
    return image


@pytest.fixture
def action_samples() -> list[ActionSample]:
    """Four samples, the last with three padded rows."""
    return [action_sample(seed, pad=3 * (seed == 3)) for seed in range(4)]


@pytest.fixture
def point_samples() -> list[GroundingSample]:
    """Four questions for the same red cube, at (88, 24) in noise."""
    return [point_sample(seed) for seed in range(4)]


def image(seed: int, size: int = 128) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)


def observation(seed: int) -> Observation:
    state = np.random.default_rng(seed).uniform(-0.05, 0.05, 7).astype(np.float32)
    words = "reach the red cube" if seed % 2 else "put the blue ball in the red bin"
    return Observation({"third_person": image(seed), "wrist": image(seed + 100)}, state, words)


def action_sample(seed: int, pad: int = 0) -> ActionSample:
    seen = observation(seed)
    actions = np.random.default_rng(seed).uniform(-0.05, 0.05, (8, 7)).astype(np.float32)
    is_pad = np.arange(8) >= 8 - pad
    return ActionSample(seen.images, seen.state, seen.instruction, actions, is_pad, "tabletop_panda")


def point_sample(seed: int) -> GroundingSample:
    labels = np.zeros((32, 32), np.int8)
    labels[4:8, 20:24] = 1
    answer = Spatial("red cube", points=((88.0, 24.0),))
    return GroundingSample(image(seed), "point", "red cube", answer, None, labels, ("red cube",))
