"""Safety outside the model: what is clamped, what is refused, who is stopped, and what is written down."""

import errno
import os
from dataclasses import replace

import numpy as np
import pytest

from st4vla.platform.contracts import ActionChunk, PolicySpec
from st4vla.platform.errors import ConfigError, WireError
from st4vla.platform.wire.stamps import RequestStamp
from st4vla.serve.events import Refused, Stopped
from st4vla.serve.safety.embodiment import Embodiment, Part, packaged, packaged_for
from st4vla.serve.safety.guard import Safety, SafetyConfig, SafetyFilter
from st4vla.serve.safety.interventions import Intervention, InterventionLog, read_log
from st4vla.serve.safety.motion import MotionLimits
from st4vla.serve.session import Session

PANDA = Embodiment.load("tabletop_panda")
GENTLE = replace(PANDA, parts=(replace(PANDA.parts[0], acceleration=(1.5,)), *PANDA.parts[1:]))
STATE = np.array([0.6, 0, 0.2, np.pi, 0, 0, 1], np.float32)


def chunk(*rows, age=0.0):
    return ActionChunk(np.array([[x, y, z, 0, 0, 0, grip] for x, y, z, grip in rows], np.float32), plan_age_s=age)


def stamp(**entries):
    return RequestStamp(**{"robot": "arm", "session": "s", **entries})


def session():
    return Session("s", "arm", "key", 0.0)


@pytest.fixture
def log(tmp_path):
    return InterventionLog(tmp_path / "interventions.jsonl", clock=lambda: 12.0)


def test_a_chunk_within_the_limits_passes_bit_for_bit():
    asked = chunk((0.01, 0, 0, 1), (0.02, 0.01, 0, 0))
    given, interventions = SafetyFilter(PANDA).check(session(), stamp(), asked, STATE)
    assert np.array_equal(given.actions, asked.actions) and interventions == ()


def test_a_fast_action_is_clamped_and_written_down_with_the_limit_it_broke(log):
    given, interventions = SafetyFilter(PANDA, log=log).check(
        session(), stamp(sequence=7), chunk((0.1, 0, 0, 1)), STATE
    )
    assert given.actions[0, 0] == pytest.approx(0.05)
    assert interventions[0].text == "clamped: position velocity, row 0, [0.1, 0, 0] to [0.05, 0, 0]"
    log.flush()
    (line, *_) = read_log(log.path)
    assert line["time_s"] == 12.0 and line["robot"] == "arm" and line["sequence"] == 7
    assert (line["part"], line["limit"], line["kind"]) == ("position", "velocity", "clamped")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_number_that_is_not_finite_refuses_the_whole_chunk_and_names_it(value, log):
    with pytest.raises(WireError, match="expected a number") as caught:
        SafetyFilter(PANDA, log=log).check(session(), stamp(), chunk((0, 0, 0, 1), (0, value, 0, 1)), STATE)
    assert (caught.value.kind, caught.value.field) == ("invalid", "actions[1][1]")
    log.flush()
    assert [line["kind"] for line in read_log(log.path)] == ["refused"]


@pytest.mark.parametrize("shape", [(8, 6), (7,), (0, 7), (2, 8, 7)])
def test_actions_of_another_shape_are_refused(shape):
    with pytest.raises(WireError, match=r"needs numbers \[T,7\]"):
        SafetyFilter(PANDA).check(session(), stamp(), ActionChunk(np.zeros(shape, np.float32)), STATE)


def test_millimetres_sent_as_metres_are_refused_and_not_clamped():
    with pytest.raises(WireError, match="position would move at 50 m/s, more than 5 times its limit"):
        SafetyFilter(PANDA).check(session(), stamp(), chunk((10, 0, 0, 1)), STATE)


def test_a_chunk_under_an_old_plan_is_refused():
    with pytest.raises(WireError, match="2500 ms old; 2000 ms are allowed") as caught:
        SafetyFilter(PANDA).check(session(), stamp(), chunk((0, 0, 0, 1), age=2.5), STATE)
    assert caught.value.kind == "stale"


def test_a_plan_of_no_known_age_is_refused():
    with pytest.raises(WireError):
        SafetyFilter(PANDA).check(session(), stamp(), chunk((0, 0, 0, 1), age=float("nan")), STATE)


def test_a_chunk_past_its_deadline_is_refused():
    with pytest.raises(WireError, match="500 ms late") as caught:
        SafetyFilter(PANDA, clock=lambda: 10.5).check(session(), stamp(), chunk((0, 0, 0, 1)), STATE, deadline_s=10.0)
    assert caught.value.kind == "deadline"


def test_limits_that_need_the_position_refuse_a_robot_that_does_not_say_it():
    with pytest.raises(WireError, match="need its state of 7 numbers"):
        SafetyFilter(PANDA).check(session(), stamp(), chunk((0, 0, 0, 1)), None)
    given, _ = SafetyFilter(PANDA, require_state=False).check(session(), stamp(), chunk((0.1, 0, 0, 1)), None)
    assert given.actions[0, 0] == pytest.approx(0.05)


def test_a_new_chunk_is_limited_from_the_row_that_the_robot_had_reached():
    safety, held = SafetyFilter(GENTLE), session()
    safety.check(held, stamp(), chunk((0.02, 0, 0, 1), (0.04, 0, 0, 1), (0.02, 0, 0, 1), (0, 0, 0, 1)), STATE)
    back = chunk((-0.04, 0, 0, 1))
    given, interventions = safety.check(held, stamp(sequence=1, executed_steps=2), back, STATE)
    assert given.actions[0, 0] == pytest.approx(-0.02) and interventions[0].limit == "acceleration"


def test_a_robot_that_executed_the_whole_chunk_stands_again():
    safety, held = SafetyFilter(PANDA), session()
    safety.check(held, stamp(), chunk((0.02, 0, 0, 1), (0.04, 0, 0, 1)), STATE)
    given, interventions = safety.check(held, stamp(sequence=1, executed_steps=2), chunk((-0.04, 0, 0, 1)), STATE)
    assert given.actions[0, 0] == pytest.approx(-0.04) and interventions == ()


@pytest.mark.parametrize("said", [{"executed_of": 3}, {"executed_of": 4, "at_rest": True}])
def test_a_robot_that_is_not_in_the_last_chunk_is_limited_from_a_standstill(said):
    safety, held = SafetyFilter(GENTLE), session()
    safety.check(held, stamp(sequence=4), chunk((0.02, 0, 0, 1), (0.04, 0, 0, 1), (0.02, 0, 0, 1), (0, 0, 0, 1)), STATE)
    back = chunk((-0.04, 0, 0, 1))
    begun, _ = SafetyFilter(GENTLE).check(session(), stamp(), back, STATE)
    given, _ = safety.check(held, stamp(sequence=5, executed_steps=2, **said), back, STATE)
    assert given.actions[0, 0] == begun.actions[0, 0] < -0.02
    again, _ = safety.check(held, stamp(sequence=6, executed_steps=0, executed_of=5), back, STATE)
    assert again.actions[0, 0] == begun.actions[0, 0]


def test_the_workspace_counts_from_where_the_robot_is_and_not_from_where_it_was_told_to_be():
    at_the_edge = STATE + np.array([0.29, 0, 0, 0, 0, 0, 0], np.float32)
    given, interventions = SafetyFilter(PANDA).check(session(), stamp(), chunk(*[(0.04, 0, 0, 1)] * 4), at_the_edge)
    assert given.actions[:, 0].sum() <= 0.0101
    assert "position" in interventions[0].text


def test_random_sessions_never_leave_a_limit_across_chunks():
    rng, safety, limits = np.random.default_rng(0), SafetyFilter(PANDA), MotionLimits(PANDA)
    motion, executed, held = limits.standing(STATE), 0, session()
    for sequence in range(20):
        rows = rng.normal(0, 1, (8, 7)) * [0.05, 0.05, 0.05, 0.2, 0.2, 0.2, 1]
        wild = ActionChunk(rows.astype(np.float32))
        given, _ = safety.check(
            held, stamp(sequence=sequence, executed_steps=executed), wild, None if sequence else STATE
        )
        executed = int(rng.integers(1, 8))
        again = limits.limit(motion, given.actions[:executed])
        assert again.clamps == ()
        motion = again.motions[-1]


def centre(robot: Embodiment) -> np.ndarray:
    """Give the state in the middle of a robot's workspace."""
    hand = robot.parts[0]
    return np.concatenate([np.add(hand.low, hand.high) / 2, np.zeros(robot.state_dim - hand.width)]).astype(np.float32)


@pytest.mark.parametrize("name", sorted(packaged()))
def test_every_packaged_robot_keeps_its_limits_whatever_is_asked(name):
    robot, rng = Embodiment.load(name), np.random.default_rng(1)
    limits, motion = MotionLimits(robot), MotionLimits(robot).standing(centre(robot))
    hand = robot.parts[0]
    for _ in range(6):
        fast = np.repeat([hand.velocity[0], robot.parts[1].velocity[0], robot.control_hz], [3, 3, 1]) / robot.control_hz
        given = limits.limit(motion, rng.normal(0, 1, (8, 7)) * fast)
        used = int(rng.integers(1, 9))
        assert limits.limit(motion, given.actions[:used]).clamps == ()
        motion = given.motions[used - 1]
        assert (motion.parts[0].position <= np.add(hand.high, 1e-4)).all()
        assert (motion.parts[0].position >= np.subtract(hand.low, 1e-4)).all()


@pytest.mark.parametrize(("key", "name"), [("oxe_bridge", "widowx"), ("oxe_rt1", "google_robot"), ("point", "point")])
def test_limits_are_found_by_the_names_that_recordings_go_by(key, name):
    assert packaged_for(key) == name and packaged_for("pr2") is None


@pytest.mark.parametrize(("name", "step_m"), [("widowx", 0.06), ("google_robot", 0.16)])
def test_a_robot_that_asks_for_every_step_anew_is_not_slowed_at_its_usual_speed(name, step_m):
    robot = Embodiment.load(name)
    asked = chunk((step_m, 0, 0, 1), (step_m, 0, 0, 0))
    given, interventions = SafetyFilter(robot).check(session(), stamp(), asked, centre(robot))
    assert np.array_equal(given.actions, asked.actions) and interventions == ()


def test_a_published_policy_without_a_state_is_limited_in_speed(caplog):
    published = replace(spec("oxe_bridge"), state_dim=0)
    asked = chunk((0.2, 0, 0, 1))
    given, interventions = Safety(SafetyConfig()).check(published, session(), stamp(), asked, None, float("inf"))
    assert given.actions[0, 0] == pytest.approx(0.07) and interventions[0].limit == "velocity"
    assert "left to the robots' clients" in caplog.text


def test_a_robot_moved_by_hand_is_limited_from_where_it_is():
    limits = MotionLimits(PANDA)
    moved = STATE + np.array([0, 0.3, 0, 0, 0, 0, 0])
    motion = limits.anchored(limits.standing(STATE), moved)
    assert motion.parts[0].position == pytest.approx([0.6, 0.3, 0.2])
    lagging = limits.anchored(limits.standing(STATE), STATE + np.array([0, 0.05, 0, 0, 0, 0, 0]))
    assert lagging.parts[0].position == pytest.approx([0.6, 0, 0.2])


def test_braking_ends_at_rest_and_keeps_the_gripper():
    limits = MotionLimits(PANDA)
    limited = limits.limit(limits.standing(STATE), chunk((0.04, 0.02, 0, 0), (0.05, 0.04, 0, 0)).actions)
    motion, last = limited.motions[-1], limited.actions[-1]
    for _ in range(10):
        motion, last = limits.brake(motion, last)
    assert motion.is_at_rest and last.tolist() == [0, 0, 0, 0, 0, 0, 0]


def spec(key="tabletop_panda", **changes):
    return PolicySpec(
        **{**dict(cameras=(), image_size=32, state_dim=7, action_dim=7, chunk_length=8), **changes},
        control_hz=5.0,
        statistics_key=key,
    )


def test_a_packaged_embodiment_limits_the_policies_of_its_name():
    given, found = Safety(SafetyConfig()).check(spec(), session(), stamp(), chunk((0.1, 0, 0, 1)), STATE, 1e12)
    assert given.actions[0, 0] == pytest.approx(0.05) and found


def test_an_embodiment_without_limits_is_still_refused_what_no_robot_can_execute(caplog):
    safety = Safety(SafetyConfig())
    given, found = safety.check(spec("stranger"), session(), stamp(), chunk((9, 0, 0, 1)), STATE, 1e12)
    assert given.actions[0, 0] == 9 and not found and "no limits are known" in caplog.text
    with pytest.raises(WireError, match="expected a number"):
        safety.check(spec("stranger"), session(), stamp(), chunk((np.nan, 0, 0, 1)), STATE, 1e12)


def test_limits_can_be_required():
    with pytest.raises(WireError, match="no limits for the embodiment stranger"):
        Safety(SafetyConfig(require=True)).check(spec("stranger"), session(), stamp(), chunk((0, 0, 0, 1)), STATE, 1e12)


def test_an_embodiment_that_does_not_fit_the_policy_lets_nothing_through():
    safety = Safety(SafetyConfig({"stranger": "point"}))
    with pytest.raises(WireError, match="takes 7 numbers at 20 Hz; the policy gives 7 at 5 Hz"):
        safety.check(spec("stranger"), session(), stamp(), chunk((0, 0, 0, 1)), STATE, 1e12)


def test_a_policy_without_a_state_leaves_the_workspace_to_the_client(caplog):
    safety = Safety(SafetyConfig())
    given, _ = safety.check(spec(state_dim=0), session(), stamp(), chunk((0.1, 0, 0, 1)), None, 1e12)
    assert given.actions[0, 0] == pytest.approx(0.05) and "workspaces are left" in caplog.text


def test_a_refused_chunk_is_not_continued():
    safety, held = SafetyFilter(PANDA), session()
    safety.check(held, stamp(), chunk((0.02, 0, 0, 1), (0.04, 0, 0, 1)), STATE)
    with pytest.raises(WireError):
        safety.check(held, stamp(), chunk((float("nan"), 0, 0, 1)), STATE)
    assert held.motions == ()


def test_the_log_is_only_ever_appended_to(tmp_path):
    path = tmp_path / "log" / "interventions.jsonl"
    for robot in ("a", "b"):
        log = InterventionLog(path)
        log.write(Intervention("held", robot, "late"), Intervention("held", robot, "late"))
        log.close()
    path.write_text(path.read_text() + '{"torn')
    assert [line["robot"] for line in read_log(path)] == ["a", "a", "b", "b"]


def test_a_log_on_a_full_disk_harms_no_answer_and_is_reported_once(tmp_path, monkeypatch, caplog):
    told, write = [], os.write
    log = InterventionLog(tmp_path / "interventions.jsonl", report=told.append)

    def full(file, content):
        if file == log._file:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(file, content)

    safety, fast = SafetyFilter(PANDA, log=log), chunk((0.1, 0, 0, 1))
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        given, interventions = safety.check(session(), stamp(), fast, STATE)
        with pytest.raises(WireError, match="expected a number") as caught:
            safety.check(session(), stamp(), chunk((np.nan, 0, 0, 1)), STATE)
        log.flush()
    assert given.actions[0, 0] == pytest.approx(0.05) and interventions and caught.value.kind == "invalid"
    assert log.lost == 2 and len(told) == 1 and "No space left" in told[0]
    assert len([record for record in caplog.records if record.levelname == "ERROR"]) == 1
    safety.check(session(), stamp(), fast, STATE)
    log.close()
    assert [(line["kind"], line.get("lines")) for line in read_log(log.path)] == [("clamped", None), ("lost", 2)]


def test_the_log_is_rotated_and_only_so_many_files_are_kept(log):
    log._file_bytes = 2_000
    for number in range(300):
        log.write(Intervention("held", f"arm-{number}", "late"))
    log.close()
    assert len(log.files()) == 8 and all(path.stat().st_size <= 2_000 for path in [*log.files(), log.path])
    assert list(read_log(log.path))[-1]["robot"] == "arm-299" and log.lost == 0


def test_an_emergency_stop_and_its_release_are_lines(tmp_path):
    safety = Safety(SafetyConfig(interventions=str(tmp_path / "log.jsonl")))
    for event in (Stopped(True, "arm", "smoke"), Stopped(False, "arm"), Stopped(True), Refused("stopped")):
        safety.note(event)
    safety.close()
    lines = [(line["kind"], line["robot"], line["message"], line["place"]) for line in read_log(tmp_path / "log.jsonl")]
    assert lines[:2] == [("stopped", "arm", "smoke", "server"), ("released", "arm", "", "server")]
    assert lines[2:] == [("stopped", "*", "", "server")]


def test_an_embodiment_must_cover_every_column_once():
    with pytest.raises(ConfigError, match="expected each of 0, 1"):
        Embodiment("x", 5, (Part("a", 0, 2, "m", "delta"), Part("b", 1, 3, "m", "delta")))


def test_a_workspace_needs_the_measured_position():
    with pytest.raises(ConfigError, match="state_start"):
        Part("hand", 0, 1, "m", "delta", None, (0,), (1,))


def test_an_unknown_embodiment_names_those_there_are():
    with pytest.raises(ConfigError, match="tabletop_panda"):
        Embodiment.load("nobody")


def test_an_embodiment_survives_its_own_plain_form():
    assert Embodiment.from_mapping(PANDA.as_plain()) == PANDA
