"""What a client does with an answer that it cannot use, and what it says of it with its next request."""

import pytest

from st4vla.platform.errors import WireError
from st4vla.platform.wire.stamps import KEY
from st4vla.serve.client.link import Lost, Refused, Reply
from st4vla.serve.client.point_robot import PointRobot
from st4vla.serve.client.point_server import answer
from tests.serve.client.scripted import POINT, ScriptedLink, client_of, logged, run, stamps


@pytest.mark.parametrize(("age_ms", "taken"), [(2000.0, True), (2001.0, False), (float("nan"), False), ("old", False)])
def test_a_chunk_under_an_old_plan_is_dropped_at_this_end_too(age_ms, taken, tmp_path):
    assert POINT.max_plan_age_ms == 2000
    link, robot = ScriptedLink(), PointRobot()
    client = client_of(link, tmp_path)
    client.tick(robot.observe)
    link.tell(Reply(1, {**answer(link.sent[0]), KEY: {"plan_age_ms": age_ms}}))
    assert (client.tick(robot.observe).why == "chunk") is taken
    assert (client.stats.replies, client.stats.dropped_replies) == (int(taken), int(not taken))
    assert [line["message"].startswith("its plan is") for line in logged(client)] == [True] * (not taken)


def counted(link):
    """Give what the requests said of what was executed: how many rows, of which chunk, and whether the robot stood."""
    return [(one["executed_steps"], one.get("executed_of"), one["at_rest"]) for one in stamps(link)]


@pytest.mark.parametrize(
    "event", [Reply(2, {"actions": "fast"}), Lost("gone"), Refused(2, WireError("stale", "", "Old."))]
)
def test_after_an_answer_that_was_not_taken_the_rows_are_counted_of_the_chunk_that_is_executed(event):
    link, robot = ScriptedLink([1]), PointRobot()
    client = client_of(link, pause_s=0.0)
    run(client, link, robot, 6)
    assert counted(link) == [(0, None, True), (4, 1, False)]
    link.tell(event)
    assert run(client, link, robot, 1) == ["chunk"]
    assert counted(link)[2:] == [(5, 1, False)]
    link.tell(Reply(3, answer(link.sent[2])))
    run(client, link, robot, 5)
    assert counted(link)[3:] == [(4, 3, False)]


def test_after_a_stop_the_rows_executed_still_count_and_the_robot_is_said_to_stand():
    link, robot = ScriptedLink([1]), PointRobot()
    client = client_of(link)
    run(client, link, robot, 4)
    client.stop("a hand in the cell")
    run(client, link, robot, 2)
    client.release()
    run(client, link, robot, 1)
    assert counted(link) == [(0, None, True), (3, 1, True)]


def test_a_robot_that_holds_for_want_of_an_answer_is_said_to_stand():
    link, robot = ScriptedLink([1]), PointRobot()
    client = client_of(link)
    whys = run(client, link, robot, 30)
    assert whys[-1] == "waiting"
    link.tell(Lost("gone"))
    run(client, link, robot, 1)
    assert counted(link)[-1] == (8, 1, True)


def test_another_episode_counts_nothing_of_the_one_before():
    link, robot = ScriptedLink([1, 9, 1]), PointRobot()
    client = client_of(link)
    run(client, link, robot, 4)
    client.end_episode(True)
    run(client, link, robot, 1)
    assert (stamps(link)[-1]["executed_steps"], stamps(link)[-1].get("executed_of")) == (0, None)
