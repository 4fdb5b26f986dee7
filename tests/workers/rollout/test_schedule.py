"""Facts about who works on what next."""

from st4vla.workers.rollout.schedule import Lanes


def lanes(**numbers: int) -> Lanes[str]:
    return Lanes([f"{name}{i}" for name, count in numbers.items() for i in range(count)], lambda item: item[0])


def test_an_actor_stays_with_its_world_while_there_is_work():
    work = lanes(a=2, b=3)
    assert [work.take(0) for _ in range(6)] == ["b0", "b1", "b2", "a0", "a1", None]


def test_actors_spread_over_the_lanes():
    work = lanes(a=4, b=4)
    assert (work.take(0), work.take(1)) == ("a0", "b0")


def test_an_idle_actor_takes_from_the_lane_that_is_most_behind_by_its_cost():
    work = lanes(a=6, b=4, c=1)
    assert [work.take(actor) for actor in (0, 1, 2)] == ["a0", "b0", "a1"]
    work.finished("a0", 1.0)
    work.finished("b0", 10.0)
    assert work.take(3) == "b1"


def test_a_lane_that_many_work_on_is_less_behind():
    work = lanes(a=10, b=4)
    assert [work.take(actor) for actor in range(4)] == ["a0", "a1", "b0", "a2"]


def test_an_unknown_lane_costs_what_the_others_do():
    work = lanes(a=3, b=2)
    assert work.take(0) == "a0"
    work.finished("a0", 5.0)
    assert work.take(1) == "b0"


def test_nothing_waits_after_clearing():
    work = lanes(a=3)
    work.clear()
    assert (len(work), work.take(0)) == (0, None)
