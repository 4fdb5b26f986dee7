"""Held-out samples are scored in the scale of their own embodiment, whichever the policy's own is."""

from pathlib import Path

import numpy as np
import pytest
import torch

from st4vla.platform.contracts import ActionSample, Observation
from st4vla.platform.data.statistics import EmbodimentStatistics, Statistics
from st4vla.platform.policy.config import PolicyConfig
from st4vla.platform.policy.model import St4vlaModel
from st4vla.platform.policy.processor import Processor
from st4vla.platform.policy.prompt import template_texts
from st4vla.platform.policy.tokenizer import build_tokenizer
from st4vla.platform.train.predict import Predictor
from st4vla.platform.train.validation import ACTION_METRICS, Tally, score_actions

OWN, OTHER = "tabletop_panda", "bigger_arm"
BLACK = {camera: np.zeros((128, 128, 3), np.uint8) for camera in ("third_person", "wrist")}


def statistics(scale: float) -> dict[str, EmbodimentStatistics]:
    """Statistics of two embodiments; the other's actions are `scale` times as large."""
    rows = np.linspace(-1, 1, 14).reshape(2, 7)
    kinds = {OWN: 1.0, OTHER: scale}
    return {
        key: EmbodimentStatistics(key, Statistics.of(size * rows), Statistics.of(rows)) for key, size in kinds.items()
    }


def sample(place: int, embodiment: str, size: float) -> ActionSample:
    actions = np.full((2, 7), size, np.float32)
    return ActionSample(BLACK, None, f"reach {place}", actions, np.array([False, False]), embodiment)


def test_samples_of_several_embodiments_are_acted_on_by_embodiment_and_keep_their_noise():
    asked: list[tuple[list[str], list[tuple[int, int]], str]] = []

    def act(seen, keys, embodiment):
        asked.append(([one.instruction for one in seen], list(keys), embodiment))
        return [np.full((2, 7), 1.0 if embodiment == OWN else 10.0)] * len(seen)

    samples = [sample(0, OWN, 1.0), sample(1, OTHER, 10.0), sample(2, OWN, 1.0), sample(3, OWN, 1.0)]
    tally = Tally(ACTION_METRICS)
    score_actions(samples, act, tally, "delta_end_effector", statistics(10.0), batch_size=2)
    assert asked == [
        (["reach 0", "reach 2"], [(0, 0), (2, 0)], OWN),
        (["reach 3"], [(3, 0)], OWN),
        (["reach 1"], [(1, 0)], OTHER),
    ]
    assert tally.means(1, torch.device("cpu"))["action_translation_mm"] == 0.0


def test_each_embodiment_is_scored_over_its_own_spread():
    samples = [sample(0, OWN, 0.0), sample(1, OTHER, 0.0)]
    tally = Tally(ACTION_METRICS)

    def act(seen, keys, embodiment):
        return [np.full((2, 7), 1.0 if embodiment == OWN else 10.0)]

    score_actions(samples, act, tally, "absolute_joints", statistics(10.0))
    spread = statistics(10.0)[OWN].action.std
    assert tally.means(1, torch.device("cpu")) == {"action_error": pytest.approx(float((1 / spread).mean()))}


def test_the_predictor_scales_actions_back_by_the_key_it_is_given():
    config = PolicyConfig.from_yaml(Path(__file__).parents[1] / "policy" / "micro.yaml")
    processor = Processor(config, build_tokenizer(template_texts(config.prompt), 512), statistics(10.0))
    torch.manual_seed(0)
    predictor = Predictor(St4vlaModel(config, processor.token_ids).eval(), processor)
    seen = [Observation(BLACK, np.zeros(7, np.float32), "reach")]
    own, same, other = (predictor.act(seen, [(0, 0)], key)[0] for key in ("", OWN, OTHER))
    assert np.array_equal(own, same)
    np.testing.assert_allclose(other[:, :6], 10 * own[:, :6], rtol=1e-4, atol=1e-5)
