"""What a client does with an answer that it cannot use, and what it says of it with its next request."""

import pytest

from st4vla.platform.wire.stamps import KEY
from st4vla.serve.client.link import Reply
from st4vla.serve.client.point_robot import PointRobot
from st4vla.serve.client.point_server import answer
from tests.serve.client.scripted import POINT, ScriptedLink, client_of, logged


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
