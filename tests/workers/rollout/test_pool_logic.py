"""Facts about who gets which item, with actors that answer in this process as soon as they are asked."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import pytest
import ray
from ray import exceptions

from st4vla.platform.errors import EnvError, WorkerLost
from st4vla.workers.rollout.inference import ActorClient
from st4vla.workers.rollout.pool import Pool, PoolConfig
from st4vla.workers.rollout.strikes import Strikes

OUT_OF_MEMORY = exceptions.OutOfMemoryError("the node ran out of memory")
LOST = exceptions.ObjectLostError("ab", None, "")
REBUILT_IN_VAIN = exceptions.ObjectReconstructionFailedError("ab", None, "")


class Value(NamedTuple):
    """What an item came to: a reason to try it again or "", and whether its process is spent."""

    reason: str = ""
    spent: bool = False


class Call(NamedTuple):
    work: Callable[[], Any]
    is_start: bool


class Method:
    def __init__(self, work: Callable[..., Any], is_start: bool = False):
        self._work, self._is_start = work, is_start

    def remote(self, *given: Any) -> Call:
        return Call(partial(self._work, *given), self._is_start)


class Actor:
    def __init__(self, run: Callable[[int], Value], ready: Callable[[], bool] = lambda: True):
        self.run, self.ready = Method(run), Method(ready, is_start=True)


@pytest.fixture(autouse=True)
def answers_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who starts is ready at once; of those at work the first is done first, so it is the one that comes for more."""

    def wait(calls: list[Call], num_returns: int, timeout: float) -> tuple[list[Call], list[Call]]:
        first = next((call for call in calls if call.is_start), calls[0])
        return [first], [call for call in calls if call is not first]

    monkeypatch.setattr(ray, "wait", wait)
    monkeypatch.setattr(ray, "get", lambda call, timeout=None: call.work())
    monkeypatch.setattr(ray, "kill", lambda actor, no_restart: None)
    monkeypatch.setattr(ray, "cancel", lambda call: None)


class House:
    """A pool of `num_actors` that does `count` items; `run(place, item)` is what an actor does with an item."""

    def __init__(self, run, num_actors=2, count=12, ready=lambda place: True, config=PoolConfig()):  # noqa: B008
        self.tried: list[tuple[int, int]] = []
        self.retries: list[tuple[int, str]] = []

        def noted(place: int, item: int) -> Value:
            self.tried.append((place, item))
            return run(place, item)

        self.pool: Pool[int] = Pool(
            lambda place: Actor(partial(noted, place), partial(ready, place)),
            num_actors,
            config,
            on_retry=lambda item, why: self.retries.append((item, why)),
            spent=lambda value: value.spent,
        )
        left = iter(range(count))
        outcomes = self.pool.run(
            lambda place: next(left, None), lambda actor, item: actor.run.remote(item), lambda value: value.reason
        )
        self.rows = sorted((outcome.item, outcome.value, outcome.failure, outcome.reason) for outcome in outcomes)


def failed_getting_ready(cause: Exception) -> exceptions.RayTaskError:
    return exceptions.RayTaskError("ready", "where it was", cause, "title", 1, "127.0.0.1")


def test_a_place_that_breaks_over_every_item_costs_no_item_its_tries_and_is_retired():
    house = House(lambda place, item: Value("no device", True) if place == 0 else Value())
    assert house.rows == [(item, Value(), "", "") for item in range(12)]
    assert [place for place, _ in house.tried].count(0) == 3
    assert len(house.pool.actors) == 1


def test_a_failed_item_waits_for_an_actor_that_is_starting_but_not_for_one_that_cannot_start(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(ray, "wait", lambda calls, num_returns, timeout: (calls[:1], calls[1:]))
    late = House(lambda place, item: Value("no device", True) if place == 0 else Value(), count=4)
    assert late.rows == [(item, Value(), "", "") for item in range(4)]
    assert [place for place, _ in late.tried].count(0) == 4

    def ready(place: int) -> bool:
        if place == 1:
            raise failed_getting_ready(RuntimeError("no place"))
        return True

    lone = House(lambda place, item: Value("no device", True), count=1, ready=ready)
    assert lone.rows == [(0, Value("no device", True), "", "")]


def test_with_no_limit_a_broken_place_is_never_retired_and_still_costs_no_item():
    config = PoolConfig(retire_after=0)
    house = House(lambda place, item: Value("no device", True) if place == 0 else Value(), config=config)
    assert house.rows == [(item, Value(), "", "") for item in range(12)]
    assert len(house.pool.actors) == 2


def test_an_item_that_breaks_every_process_changes_place_at_each_try_and_no_place_is_blamed():
    broken = (3, 4, 5, 6)
    house = House(lambda place, item: Value("bad scene", True) if item in broken else Value(), num_actors=3)
    assert [row for row in house.rows if row[0] not in broken] == [
        (item, Value(), "", "") for item in (0, 1, 2, *range(7, 12))
    ]
    for item in broken:
        places = [place for place, tried in house.tried if tried == item]
        assert len(places) == 3 and places[0] != places[1] != places[2]
    assert len(house.pool.actors) == 3


def test_a_policys_failures_retire_nobody():
    house = House(lambda place, item: Value("nan") if place == 0 else Value())
    assert house.rows == [(item, Value(), "", "") for item in range(12)]
    assert len(house.pool.actors) == 2


def test_a_lone_actor_gets_its_own_failures_again_and_gives_the_rows_of_four():
    def run(place: int, item: int) -> Value:
        return Value("bad scene", True) if item % 5 == 0 else Value()

    alone, four = House(run, num_actors=1), House(run, num_actors=4)
    assert alone.rows == four.rows
    assert alone.rows[5] == (5, Value("bad scene", True), "", "")
    assert sorted(alone.retries) == sorted(four.retries) == [(i, "bad scene") for i in (0, 0, 5, 5, 10, 10)]


@pytest.mark.parametrize("error", [OUT_OF_MEMORY, LOST, REBUILT_IN_VAIN], ids=lambda error: type(error).__name__)
def test_what_ray_loses_costs_the_item_a_try_and_not_the_run(error: Exception):
    left = [error]

    def run(place: int, item: int) -> Value:
        if item == 2 and left:
            raise left.pop()
        return Value()

    house = House(run)
    assert house.rows == [(item, Value(), "", "") for item in range(12)]
    assert [item for item, why in house.retries if type(error).__name__ in why] == [2]


def test_an_actor_that_cannot_get_ready_is_replaced_and_ends_nothing():
    causes: list[Exception] = [RuntimeError("failed to find a rendering device")] * 4

    def ready(place: int) -> bool:
        if place == 0 and causes:
            raise failed_getting_ready(causes.pop())
        return True

    house = House(lambda place, item: Value(), ready=ready)
    assert house.rows == [(item, Value(), "", "") for item in range(12)]
    assert (causes, house.retries) == ([], [])


def test_a_pool_in_which_no_actor_gets_ready_says_why():
    def ready(place: int) -> bool:
        raise failed_getting_ready(RuntimeError("failed to find a rendering device"))

    with pytest.raises(WorkerLost, match="could not get ready: RuntimeError: failed to find a rendering device"):
        House(lambda place, item: Value(), ready=ready)


def test_an_error_of_ours_in_getting_ready_ends_the_run_as_it_is():
    def ready(place: int) -> bool:
        raise failed_getting_ready(EnvError("the asset tree lacks files"))

    with pytest.raises(EnvError, match="the asset tree lacks files"):
        House(lambda place, item: Value(), ready=ready)


@pytest.mark.parametrize("error", [OUT_OF_MEMORY, LOST], ids=lambda error: type(error).__name__)
def test_an_answer_that_ray_lost_is_a_lost_worker_to_the_episode(error: Exception):
    def lose(statistics_key: str) -> None:
        raise error

    class Inference:
        spec = Method(lose)

    with pytest.raises(WorkerLost, match=type(error).__name__):
        ActorClient(Inference(), 1.0)


def test_only_items_that_broke_nothing_elsewhere_speak_against_a_place():
    strikes = Strikes(2)
    strikes.add(0, "a")
    strikes.add(1, "a")
    strikes.add(0, "a")
    strikes.add(0, "b")
    assert not strikes.out(0) and not strikes.out(1)
    strikes.add(0, "c")
    assert strikes.out(0)
    strikes.clear(0)
    assert not strikes.out(0)
