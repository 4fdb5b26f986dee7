"""What is served becomes spool files with no hole, and spool files become episodes with a row per executed step."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from st4vla.platform.data.episode import Episode
from st4vla.platform.errors import DataError
from st4vla.serve.events import Ended, Served, Trouble
from st4vla.serve.recorder import spool
from st4vla.serve.recorder.episodes import Tape, dataset_name, plain_name, read_tape, to_episode
from st4vla.serve.recorder.settings import RecorderConfig
from st4vla.serve.recorder.tapes import Tapes

MakeServed = Callable[..., Served]


class World:
    """A clock and a disk that tests turn by hand."""

    def __init__(self) -> None:
        self.now, self.free_mb = 0.0, 1e6
        self.troubles: list[Trouble] = []


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
def tapes(tmp_path: Path, recorder_config: RecorderConfig, world: World) -> Tapes:
    return Tapes(tmp_path, recorder_config, world.troubles.append, lambda: world.now, lambda folder: world.free_mb)


def recordings(folder: Path) -> list[Tape]:
    """Read the finished recordings, by their first request."""
    tapes = [read_tape(path) for path in folder.glob("*.done")]
    return sorted(tapes, key=lambda tape: (tape.head["robot"], tape.looks[0].facts["sequence"]))


def episode(tapes: Tapes) -> Episode:
    (tape,) = recordings(tapes.folder)
    return to_episode(tape, "0" * 16)


def test_each_look_has_a_row_for_every_executed_step(tapes: Tapes, make_served: MakeServed) -> None:
    for number, executed in enumerate((None, 2, 3)):
        tapes.take(make_served(number, executed_steps=executed))
    tapes.take(Ended("arm-1", "s", "episode", success=True))
    made = episode(tapes)
    assert made.columns["sequence"].tolist() == [0, 0, 1, 1, 1, 2]
    assert made.columns["fresh"].tolist() == [1, 0, 1, 0, 0, 1]
    assert made.actions[:, 0].tolist() == [0, 0, 1, 1, 1, 2]
    assert made.frames["front"][:, 0, 0, 0].tolist() == [0, 0, 7, 7, 7, 14]
    assert made.states is not None and made.states[:, 6].tolist() == [0, 0, 1, 1, 1, 2]
    assert (made.facts["ended"], made.facts["success"], made.facts["steps"]) == ("episode", True, "stated")


def test_a_chunk_that_never_reached_the_robot_has_no_row_and_the_one_before_it_has_them_all(
    tapes: Tapes, make_served: MakeServed
) -> None:
    tapes.take(make_served(0))
    tapes.take(make_served(1, executed_steps=2, executed_of=0))
    tapes.take(make_served(2, executed_steps=3, executed_of=0))
    tapes.take(make_served(3, executed_steps=4, executed_of=0))
    tapes.take(make_served(4, executed_steps=2, executed_of=3))
    tapes.end_all("closed")
    made = episode(tapes)
    assert made.columns["sequence"].tolist() == [0, 0, 0, 0, 3, 3, 4]
    assert made.actions[:, 0].tolist() == [0, 0, 0, 0, 3, 3, 4]
    assert made.columns["fresh"].tolist() == [1, 0, 0, 0, 1, 0, 1]


def test_the_next_part_says_what_the_chunk_before_a_lost_one_had(tapes: Tapes, make_served: MakeServed) -> None:
    tapes.take(make_served(0))
    tapes.take(make_served(1, executed_of=0))
    tapes.take(make_served(2, say="push", executed_steps=4, executed_of=0))
    tapes.end_all("closed")
    first, second = (to_episode(tape, "0" * 16) for tape in recordings(tapes.folder))
    assert first.columns["sequence"].tolist() == [0, 0, 0, 0] and second.columns["sequence"].tolist() == [2]


def test_without_a_word_from_the_robot_the_clock_says_how_many_steps(tapes: Tapes, make_served: MakeServed) -> None:
    for number, at in enumerate((10.0, 10.6, 60.0)):
        tapes.take(make_served(number, executed_steps=None, at=at, control_hz=5.0))
    tapes.end_all("closed")
    made = episode(tapes)
    assert made.columns["sequence"].tolist() == [0, 0, 0, 1, 1, 1, 1, 2]
    assert made.facts["steps"] == "clock"


def test_the_model_version_of_every_row_is_kept_over_an_update(tapes: Tapes, make_served: MakeServed) -> None:
    for number, version in enumerate(("7", "8", "7")):
        tapes.take(make_served(number, model_version=version))
    tapes.end_all("closed")
    made = episode(tapes)
    assert made.facts["models"] == ["st4vla@7", "st4vla@8"]
    assert made.columns["model"].tolist() == [0, 0, 1, 1, 0]


def test_interventions_are_counted_at_the_row_they_changed(tapes: Tapes, make_served: MakeServed) -> None:
    changes = [
        {"kind": "clamped", "limit": "velocity", "rows": [1, 3]},
        {"kind": "clamped", "limit": "range", "rows": None},
        {"kind": "clamped", "limit": "jerk", "rows": [2, 3]},
    ]
    tapes.take(make_served(0))
    tapes.take(make_served(1, interventions=changes))
    tapes.take(make_served(2))
    tapes.end_all("closed")
    made = episode(tapes)
    assert made.columns["interventions"].tolist() == [0, 0, 1, 1, 0]
    assert made.facts["interventions"] == [{**changes[0], "step": 3}, {**changes[1], "step": 2}]


def test_a_new_instruction_begins_a_new_episode_and_the_old_chunk_keeps_its_steps(
    tapes: Tapes, make_served: MakeServed
) -> None:
    tapes.take(make_served(0, say="lift"))
    tapes.take(make_served(1, say="push", executed_steps=3))
    tapes.end_all("closed")
    first, second = (to_episode(tape, "0" * 16) for tape in recordings(tapes.folder))
    assert (first.instruction, len(first), second.instruction, len(second)) == ("lift", 3, "push", 1)
    assert (first.facts["part"], second.facts["part"]) == (0, 1)


def test_a_long_recording_goes_on_in_a_next_part(tmp_path: Path, make_served: MakeServed) -> None:
    tapes = Tapes(tmp_path, RecorderConfig(str(tmp_path), max_episode_mb=1, min_free_mb=1))
    for number in range(30):
        tapes.take(make_served(number, size=128))
    tapes.end_all("closed")
    made = [to_episode(tape, "0" * 16) for tape in recordings(tmp_path)]
    assert sum(int(one.columns["fresh"].sum()) for one in made) == 30
    assert [one.facts["part"] for one in made] == list(range(len(made))) and len(made) == 6


def test_a_silent_session_ends(tapes: Tapes, make_served: MakeServed, world: World) -> None:
    tapes.take(make_served(0))
    world.now = 61.0
    tapes.look_after(0.0)
    assert episode(tapes).facts["ended"] == "idle"


def test_a_cut_leaves_a_whole_episode_and_a_counted_gap(tapes: Tapes, make_served: MakeServed, world: World) -> None:
    tapes.take(make_served(0))
    tapes.take(make_served(1))
    tapes.cut(("arm-1", "s"), "queue", "too slow")
    tapes.take(make_served(2))
    world.now = 31.0
    tapes.look_after(0.0)
    tapes.take(make_served(3))
    tapes.end_all("closed")
    first, second = (to_episode(tape, "0" * 16) for tape in recordings(tapes.folder))
    assert first.columns["sequence"].tolist() == [0, 0, 1] and second.columns["sequence"].tolist() == [3]
    assert (tapes.counts.cut["queue"], tapes.counts.left_out["cut"]) == (1, 1)
    assert [(one.kind, one.robot) for one in world.troubles] == [("recording_queue", "arm-1")]


def test_the_end_of_an_episode_lifts_the_cut(tapes: Tapes, make_served: MakeServed) -> None:
    tapes.take(make_served(0))
    tapes.cut(("arm-1", "s"), "queue", "too slow")
    tapes.take(Ended("arm-1", "s", "episode"))
    tapes.take(make_served(1))
    assert tapes.counts.frames == 2


def test_a_disk_that_runs_full_cuts_every_recording_and_keeps_what_it_has(
    tapes: Tapes, make_served: MakeServed, world: World
) -> None:
    for robot in ("arm-1", "arm-2"):
        tapes.take(make_served(0, robot))
    world.free_mb = 0.5
    tapes.look_after(0.0)
    tapes.take(make_served(1, "arm-3"))
    assert (tapes.counts.cut["disk"], len(recordings(tapes.folder)), tapes.counts.left_out["disk"]) == (3, 2, 1)
    assert "free some space" in world.troubles[0].reason


def test_a_full_disk_in_the_middle_of_a_frame_keeps_the_frames_before(
    tapes: Tapes, make_served: MakeServed, monkeypatch: pytest.MonkeyPatch, world: World
) -> None:
    tapes.take(make_served(0))
    with monkeypatch.context() as patch:
        patch.setattr(spool.os, "writev", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        tapes.take(make_served(1))
    assert episode(tapes).columns["sequence"].tolist() == [0]
    assert "No space left" in world.troubles[0].reason


def test_a_backlog_of_recordings_stops_new_ones(tapes: Tapes, make_served: MakeServed, world: World) -> None:
    tapes.look_after(5000.0)
    tapes.take(make_served(0))
    assert tapes.counts.cut["backlog"] == 1 and "5000 MiB wait" in world.troubles[0].reason


def test_more_sessions_than_allowed_are_left_out_and_counted(tmp_path: Path, make_served: MakeServed) -> None:
    tapes = Tapes(tmp_path, RecorderConfig(str(tmp_path), max_sessions=2, min_free_mb=1))
    for number in range(5):
        tapes.take(make_served(0, session=str(number)))
    assert (tapes.counts.frames, tapes.counts.left_out["too_many_sessions"]) == (2, 3)


def test_without_an_instruction_nothing_is_recorded(tapes: Tapes, make_served: MakeServed) -> None:
    tapes.take(make_served(0, say=""))
    assert tapes.counts.left_out["no_instruction"] == 1


def test_odd_frames_are_padded_to_even_sides(tapes: Tapes, make_served: MakeServed) -> None:
    tapes.take(make_served(3, size=15))
    tapes.end_all("closed")
    assert episode(tapes).frames["front"].shape == (1, 16, 16, 3)


def test_robots_of_one_form_share_a_dataset_and_others_do_not(tapes: Tapes, make_served: MakeServed) -> None:
    tapes.take(make_served(0))
    tapes.end_all("closed")
    made = episode(tapes)
    assert dataset_name(made, "panda") == dataset_name(replace(made, instruction="other"), "panda")
    assert dataset_name(made, "panda") != dataset_name(replace(made, fps=10), "panda")


@pytest.mark.parametrize("name", ["../../etc/passwd", "a/b", "<script>", "x" * 500, "...", "\0"])
def test_no_name_from_outside_leaves_its_folder(name: str) -> None:
    plain = plain_name(name)
    assert plain and len(plain) <= 60 and set(plain) <= set("etcpasswdabscriptxrobot_")


def test_a_frame_whose_state_is_not_a_number_makes_no_episode(tapes: Tapes, make_served: MakeServed) -> None:
    tapes.take(make_served(0, actions=np.full((4, 7), np.nan, np.float32)))
    tapes.end_all("closed")
    with pytest.raises(DataError, match="finite"):
        episode(tapes)
