"""A policy in the expert's place: one action at a time, a look when its chunk is used up."""

import numpy as np
import pytest

from st4vla.envs.dot_world import DotWorld
from st4vla.platform.contracts import ActionChunk, EpisodeSpec, PolicySpec, Spatial
from st4vla.platform.errors import PolicyError
from st4vla.workers.rollout.pilot import Pilot

SPEC = EpisodeSpec("seen", "dot", "default", 7, "move it")


class Counting:
    """Answers chunks of four rows, row i of look n filled with 10 n + i."""

    spec = PolicySpec((), 128, 7, 7, 4, 5.0, "tabletop_panda")

    def __init__(self, width: int = 7) -> None:
        self.keys: list[tuple[int, int]] = []
        self.width = width

    def reset(self, session_id: str) -> None:
        self.keys.clear()

    def act(self, observation, session_id, noise_key) -> ActionChunk:
        rows = 10 * len(self.keys) + np.arange(4)
        self.keys.append(noise_key)
        return ActionChunk(np.repeat(rows[:, None], self.width, axis=1).astype(np.float32))

    def read_out(self, images, instructions) -> list[Spatial]:
        return []


def world() -> DotWorld:
    made = DotWorld()
    made.reset(SPEC)
    return made


def test_two_of_four_actions_are_executed_before_the_next_look():
    client = Counting()
    pilot = Pilot(world(), client, SPEC, execute=2)
    assert [pilot.act()[0] for _ in range(5)] == [0, 1, 10, 11, 20]
    assert client.keys == [(7, 0), (7, 1), (7, 2)]


def test_a_whole_chunk_costs_one_look():
    client = Counting()
    pilot = Pilot(world(), client, SPEC)
    assert [pilot.act()[0] for _ in range(4)] == [0, 1, 2, 3]
    assert client.keys == [(7, 0)]


def test_an_answer_of_the_wrong_width_is_refused():
    with pytest.raises(PolicyError, match=r"\[4, 6\]"):
        Pilot(world(), Counting(width=6), SPEC).act()
