"""What the fleet page is told: the newest of each robot, bounded, and joined over replicas."""

import io
from collections.abc import Callable

import numpy as np
from PIL import Image

from st4vla.platform.contracts import Spatial
from st4vla.serve.events import Ended, Opened, Refused, Served, Stopped, Trouble
from st4vla.serve.watch.board import Board, Report
from st4vla.serve.watch.fleet import FleetConfig, FleetView
from st4vla.serve.watch.pictures import ReadOut

MakeServed = Callable[..., Served]


def view(now: float = 1002.0, read_out: ReadOut | None = None, **config) -> FleetView:
    return FleetView(FleetConfig(**config), clock=lambda: now, read_out=read_out)


def test_a_robot_is_shown_by_its_newest_answer(make_served: MakeServed) -> None:
    fleet = view()
    fleet(Opened("arm-1", "s", "openpi", at=999.0))
    for number, total in enumerate((10.0, 20.0, 30.0, 40.0, 500.0)):
        fleet(make_served(number, timing_ms={"total": total}))
    fleet(Refused("stale", "st4vla.sequence", robot="arm-1", at=1001.0))
    fleet(Ended("arm-1", "s", "episode"))
    (robot,) = fleet.snapshot()["robots"]
    assert (robot["requests"], robot["refusals"], robot["episodes"], robot["connected"]) == (5, 1, 1, True)
    assert (robot["p50_ms"], robot["p95_ms"], robot["plan_age_ms"], robot["rate_hz"]) == (30.0, 500.0, 40.0, 0.5)
    assert (robot["model"], robot["version"], robot["instruction"]) == ("st4vla", "7", "lift")
    assert robot["spatial"]["box"] == [2, 3, 8, 9] and robot["frame_size"] == [16, 16]


def test_a_picture_is_made_once_and_its_marks_stay_with_it(make_served: MakeServed) -> None:
    fleet = view(frame_px=8)
    fleet(make_served(4))
    (at, jpeg), size = fleet.pictures()["arm-1"], (8, 8)
    picture = Image.open(io.BytesIO(jpeg))
    assert picture.size == size and abs(int(np.asarray(picture).mean()) - 28) < 4
    fleet(make_served(5, spatial=None))
    assert fleet.pictures({"arm-1": at}) == {}
    (robot,) = fleet.snapshot()["robots"]
    assert robot["sequence"] == 5 and robot["spatial"]["box"] == [2, 3, 8, 9]


def test_the_planner_is_asked_about_a_few_pictures_and_its_marks_join_the_plans_point(make_served: MakeServed) -> None:
    asked: list[tuple[str, tuple[int, ...], str]] = []

    def read_out(robot: str, image: np.ndarray, instruction: str) -> Spatial:
        asked.append((robot, image.shape, instruction))
        return Spatial("red cube", (1, 2, 3, 4), trajectory=((5, 6), (7, 8)))

    fleet = view(read_out=read_out, read_outs=2)
    for robot in ("a", "b", "c"):
        fleet(make_served(0, robot=robot, spatial=Spatial("lift", points=((9, 9),))))
    assert fleet.snapshot()["robots"][0]["spatial"]["box"] is None
    assert asked == []
    fleet.pictures()
    assert asked == [("a", (16, 16, 3), "lift"), ("b", (16, 16, 3), "lift")]
    shown = [robot["spatial"] for robot in fleet.snapshot()["robots"]]
    assert [one["box"] for one in shown] == [[1, 2, 3, 4], [1, 2, 3, 4], None]
    assert [one["points"] for one in shown] == [[[9, 9]]] * 3
    assert shown[0]["label"] == "red cube" and shown[0]["trajectory"] == [[5, 6], [7, 8]]


def test_a_planner_that_fails_leaves_the_picture_and_the_plans_point(make_served: MakeServed) -> None:
    def read_out(robot: str, image: np.ndarray, instruction: str) -> Spatial:
        raise RuntimeError("out of memory")

    fleet = view(read_out=read_out)
    fleet(make_served(0, spatial=Spatial("lift", points=((9, 9),))))
    assert list(fleet.pictures()) == ["arm-1"]
    assert fleet.snapshot()["robots"][0]["spatial"]["points"] == [[9, 9]]


def test_robots_beyond_the_bound_make_room_in_order_of_silence(make_served: MakeServed) -> None:
    fleet = view(max_robots=3)
    for name in ("a", "b", "c", "a", "d"):
        fleet(make_served(0, robot=name))
    assert [robot["robot"] for robot in fleet.snapshot()["robots"]] == ["c", "a", "d"]


def test_who_is_turned_away_at_the_door_is_no_robot() -> None:
    fleet = view()
    fleet(Refused("unauthorized", robot="nobody"))
    assert fleet.snapshot()["robots"] == []


def test_stops_hold_until_they_are_released_each_by_itself() -> None:
    fleet = view()
    fleet(Stopped(True, "arm-1", "smoke"))
    fleet(Stopped(True, "", "everybody"))
    fleet(Stopped(False, ""))
    assert fleet.snapshot()["stops"] == [{"robot": "arm-1", "reason": "smoke"}]


def test_replicas_are_joined_and_the_newest_words_count(make_served: MakeServed) -> None:
    old, new, clock = view(), view(), [0.0]
    old(make_served(0, at=900.0))
    old(Trouble("recorder_died", "it died", at=950.0))
    for number in range(3):
        new(make_served(number, model_version="8", canary=True))
    new(make_served(0, robot="arm-2", at=1001.0))
    board = Board(clock=lambda: clock[0])
    for name, fleet in (("a", new), ("b", old)):
        pictures = fleet.pictures()
        board.post(Report(name, fleet.snapshot(), pictures=pictures, deployment={"canary_share": 0.5}))
    told = board.fleet()
    assert [(one["robot"], one["requests"], one["version"], one["replica"]) for one in told["robots"]] == [
        ("arm-1", 4, "8", "a"),
        ("arm-2", 1, "7", "a"),
    ]
    assert [(one["version"], one["canary"], one["share"]) for one in told["versions"]] == [
        ("8", True, 0.75),
        ("7", False, 0.25),
    ]
    assert board.picture("arm-2") and board.picture("arm-3") is None
    assert told["troubles"][0]["reason"] == "it died" and told["deployment"] == {"canary_share": 0.5}
    assert board.post(Report("c", view().snapshot()))
    clock[0] = 16.0
    assert not board.post(Report("c", view().snapshot()))
    assert board.fleet()["robots"] == [] and board.picture("arm-2") is None
