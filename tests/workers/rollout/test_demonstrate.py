"""Facts about what is collected, without a simulator."""

import random

import numpy as np
import pytest

from st4vla.platform.contracts import EpisodeSpec
from st4vla.platform.errors import ConfigError
from st4vla.workers.rollout.demonstrate import NoiseConfig, Quota, perturbed


def spec(task: str, index: int) -> EpisodeSpec:
    return EpisodeSpec("training", task, "default", index, f"{task} {index}")


def collect(wanted: int, in_flight: int, order_seed: int, fails) -> list[str]:
    """Run a quota with attempts that finish in random order; give what was released."""
    quota, shuffle, flying, released = Quota(spec, ["reach", "push"], wanted), random.Random(order_seed), [], []
    while True:
        while len(flying) < in_flight and (item := quota.next_spec()) is not None:
            flying.append(item)
        if not flying:
            return released
        item = flying.pop(shuffle.randrange(len(flying)))
        quota.finish(item, not fails(item), item.instruction if not fails(item) else "")
        released += [name for name in quota.release() if name]


def test_what_is_kept_does_not_depend_on_who_finishes_first():
    fails = lambda item: item.task == "push" and item.seed % 3 == 1  # noqa: E731
    alone = collect(5, 1, 0, fails)
    assert alone == [
        *("reach 0", "push 0", "reach 1", "reach 2", "push 2", "reach 3", "push 3", "reach 4"),
        *("push 5", "push 6"),
    ]
    assert all(collect(5, 6, order, fails) == alone for order in range(20))


def test_nothing_is_tried_beyond_the_wanted_successes():
    quota = Quota(spec, ["reach"], 2)
    first, second = quota.next_spec(), quota.next_spec()
    assert first is not None and second is not None
    assert quota.next_spec() is None
    quota.finish(second, False, "b")
    assert quota.release() == []
    third = quota.next_spec()
    assert third is not None and third.seed == 2
    quota.finish(first, True, "a")
    assert quota.release() == ["a", "b"]


def test_noise_hits_its_share_and_spares_the_gripper():
    generator = np.random.default_rng(0)
    clean = np.zeros(7, np.float32)
    executed = np.stack([perturbed(clean, NoiseConfig(0.3, 0.02, 0.08), generator) for _ in range(4000)])
    hit = np.abs(executed).sum(1) > 0
    assert hit.mean() == pytest.approx(0.3, abs=0.02)
    assert (executed[:, 6] == 0).all()
    assert executed[hit, :3].std() == pytest.approx(0.02, rel=0.1)


def test_no_noise_leaves_the_action_alone():
    action = np.arange(7, dtype=np.float32)
    assert perturbed(action, NoiseConfig(share=0.0), np.random.default_rng(0)) is action


def test_a_share_beyond_one_is_a_config_error():
    with pytest.raises(ConfigError, match=r"noise.share is 1.5"):
        NoiseConfig(share=1.5)
