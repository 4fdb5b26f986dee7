"""A replica keeps sessions apart, plans at System 2's own rate, and acts on the newest frame."""

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace

import numpy as np
import pytest

from benchmarks.fixed_latency import SPEC, FixedLatencyPolicy
from st4vla.platform.contracts import Observation
from st4vla.platform.errors import ConfigError, WireError
from st4vla.platform.policy.random_policy import RandomPolicy
from st4vla.platform.wire.stamps import RequestStamp
from st4vla.serve.replica import Replica, ReplicaConfig
from st4vla.serve.session import SessionConfig, Sessions
from st4vla.serve.systems import systems_of


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def seen(pixel: int, words: str = "reach") -> Observation:
    image = np.full((4, 4, 3), pixel, np.uint8)
    return Observation({"third_person": image, "wrist": image}, np.full(8, pixel / 2, np.float32), words)


def a_story(config: ReplicaConfig, tell: Callable[[Replica, FixedLatencyPolicy, Clock], Awaitable[None]]) -> None:
    async def story() -> None:
        policy, clock = FixedLatencyPolicy(), Clock()
        replica = Replica(systems_of(policy), config, "v1", clock)
        await tell(replica, policy, clock)
        await replica.close()

    asyncio.run(story())


async def settle(replica: Replica) -> None:
    while replica._refreshes:
        await asyncio.sleep(0.001)


def test_without_a_period_every_request_gets_a_plan_of_its_own_frame() -> None:
    async def tell(replica: Replica, policy: FixedLatencyPolicy, clock: Clock) -> None:
        session, _ = replica.sessions.open("one", "robot", "")
        for pixel in (10, 20):
            outcome = await replica.act(seen(pixel), session, RequestStamp(sequence=pixel))
            assert outcome.actions[0, :4].tolist() == [pixel, pixel, pixel / 2, pixel]
            assert outcome.plan_age_ms == 0

    a_story(ReplicaConfig(), tell)


def test_a_young_plan_is_used_again_with_the_newest_frame() -> None:
    async def tell(replica: Replica, policy: FixedLatencyPolicy, clock: Clock) -> None:
        session, _ = replica.sessions.open("one", "robot", "")
        await replica.act(seen(10), session, RequestStamp(sequence=0))
        clock.now += 0.25
        outcome = await replica.act(seen(20), session, RequestStamp(sequence=1))
        assert outcome.actions[0, :2].tolist() == [20, 10] and outcome.plan_age_ms == 250
        assert policy.planned == [1] and outcome.timing_ms["system2"] == 0

    a_story(ReplicaConfig(plan_period_s=0.5, max_plan_age_s=2), tell)


def test_an_old_plan_is_replaced_beside_the_request_and_serves_the_next_one() -> None:
    async def tell(replica: Replica, policy: FixedLatencyPolicy, clock: Clock) -> None:
        session, _ = replica.sessions.open("one", "robot", "")
        await replica.act(seen(10), session, RequestStamp(sequence=0))
        clock.now += 0.75
        outcome = await replica.act(seen(20), session, RequestStamp(sequence=1))
        await settle(replica)
        assert outcome.timing_ms["system2"] == 0
        clock.now += 0.25
        outcome = await replica.act(seen(30), session, RequestStamp(sequence=2))
        assert outcome.actions[0, :2].tolist() == [30, 20] and outcome.plan_age_ms == 250
        assert policy.planned == [1, 1]

    a_story(ReplicaConfig(plan_period_s=0.5, max_plan_age_s=2), tell)


def test_a_changed_instruction_waits_for_its_own_plan() -> None:
    async def tell(replica: Replica, policy: FixedLatencyPolicy, clock: Clock) -> None:
        session, _ = replica.sessions.open("one", "robot", "")
        await replica.act(seen(10), session, RequestStamp(sequence=0))
        clock.now += 0.1
        outcome = await replica.act(seen(20, "push"), session, RequestStamp(sequence=1))
        assert outcome.actions[0, 1] == 20 and outcome.plan_age_ms == 0

    a_story(ReplicaConfig(plan_period_s=0.5, max_plan_age_s=2), tell)


def test_no_request_is_answered_under_a_plan_that_is_too_old() -> None:
    async def tell(replica: Replica, policy: FixedLatencyPolicy, clock: Clock) -> None:
        session, _ = replica.sessions.open("one", "robot", "")
        await replica.act(seen(10), session, RequestStamp(sequence=0))
        clock.now += 2.5
        outcome = await replica.act(seen(20), session, RequestStamp(sequence=1))
        assert outcome.actions[0, 1] == 20 and outcome.plan_age_ms == 0

    a_story(ReplicaConfig(plan_period_s=0.5, max_plan_age_s=2), tell)


def test_robots_of_one_batch_get_their_own_answers() -> None:
    async def tell(replica: Replica, policy: FixedLatencyPolicy, clock: Clock) -> None:
        policy.act_s = 0.02
        sessions = [replica.sessions.open(f"s{i}", f"robot{i}", "")[0] for i in range(6)]
        outcomes = await asyncio.gather(
            *(replica.act(seen(i), session, RequestStamp(sequence=7)) for i, session in enumerate(sessions))
        )
        assert [outcome.actions[0, 0] for outcome in outcomes] == [0, 1, 2, 3, 4, 5]
        assert max(policy.batches) > 1

    a_story(ReplicaConfig(), tell)


def test_an_older_request_is_stale_and_the_same_one_again_is_answered_the_same() -> None:
    async def tell(replica: Replica, policy: FixedLatencyPolicy, clock: Clock) -> None:
        session, _ = replica.sessions.open("one", "robot", "")
        first = await replica.act(seen(10), session, RequestStamp(sequence=5))
        again = await replica.act(seen(10), session, RequestStamp(sequence=5))
        assert np.array_equal(first.actions, again.actions)
        with pytest.raises(WireError) as caught:
            await replica.act(seen(10), session, RequestStamp(sequence=4))
        assert caught.value.kind == "stale"

    a_story(ReplicaConfig(), tell)


def test_steps_that_pass_the_chunk_are_refused_by_name() -> None:
    async def tell(replica: Replica, policy: FixedLatencyPolicy, clock: Clock) -> None:
        session, _ = replica.sessions.open("one", "robot", "")
        with pytest.raises(WireError) as caught:
            await replica.act(seen(1), session, RequestStamp(delay_steps=6, executed_steps=5))
        assert caught.value.field == "st4vla.delay_steps"

    a_story(ReplicaConfig(), tell)


def test_an_older_chunk_is_gone_on_with_only_where_the_robot_brings_what_remains_of_it() -> None:
    async def tell(replica: Replica, policy: FixedLatencyPolicy, clock: Clock) -> None:
        session, _ = replica.sessions.open("one", "robot", "")
        await replica.act(seen(1), session, RequestStamp(sequence=3))
        counted = RequestStamp(sequence=4, delay_steps=2, executed_steps=4)
        for known in (counted, replace(counted, executed_of=3)):
            continued = replica._continued(session, known)
            assert continued is not None and len(continued.remaining) == 6
        assert replica._continued(session, replace(counted, executed_of=2)) is None
        brought = replace(counted, executed_of=2, remaining=np.zeros((5, 7), np.float32))
        continued = replica._continued(session, brought)
        assert continued is not None and len(continued.remaining) == 5

    a_story(ReplicaConfig(), tell)


def test_a_policy_of_one_system_is_served_too() -> None:
    async def story() -> None:
        replica = Replica(systems_of(RandomPolicy()), ReplicaConfig())
        session, _ = replica.sessions.open("one", "robot", "")
        observation = Observation({}, np.zeros(7, np.float32), "reach")
        first = await replica.act(observation, session, RequestStamp(sequence=1))
        again = await replica.act(observation, session, RequestStamp(sequence=1))
        assert first.actions.shape == (8, 7) and np.array_equal(first.actions, again.actions)
        with pytest.raises(WireError, match="no planner"):
            await replica.ground(np.zeros((4, 4, 3), np.uint8), "where?")
        assert replica.read_out(np.zeros((4, 4, 3), np.uint8), "lift") is None
        await replica.close()

    asyncio.run(story())


def test_questions_beyond_the_bound_or_past_their_turn_are_refused() -> None:
    begun, go_on = threading.Event(), threading.Event()

    def answer(image: np.ndarray, question: str) -> tuple[str, None]:
        begun.set()
        assert go_on.wait(20)
        return f"there: {question}", None

    async def tell(replica: Replica, policy: FixedLatencyPolicy, clock: Clock) -> None:
        replica.systems.ground = answer  # type: ignore[attr-defined]
        image, soon, late = np.zeros((4, 4, 3), np.uint8), time.monotonic() + 1000, time.monotonic() - 1000
        asked = [asyncio.create_task(replica.ground(image, "0", soon))]
        await asyncio.to_thread(begun.wait, 20)
        asked += [asyncio.create_task(replica.ground(image, str(i), at)) for i, at in enumerate((soon, late), start=1)]
        await asyncio.sleep(0)
        with pytest.raises(WireError) as caught:
            await replica.ground(image, "3", soon)
        assert caught.value.kind == "overloaded"
        go_on.set()
        first, second, third = await asyncio.gather(*asked, return_exceptions=True)
        assert first == ("there: 0", None) and second == ("there: 1", None)
        assert isinstance(third, WireError) and third.kind == "deadline"

    a_story(ReplicaConfig(ground_queue=2), tell)


def test_warming_up_answers_an_empty_scene() -> None:
    policy = FixedLatencyPolicy()
    Replica(systems_of(policy), ReplicaConfig()).warm_up()
    assert policy.batches == [1] and SPEC.cameras == ("third_person", "wrist")


def test_a_period_beyond_the_greatest_age_is_refused() -> None:
    with pytest.raises(ConfigError, match="plan_period_s is 3"):
        ReplicaConfig(plan_period_s=3, max_plan_age_s=2)


def test_a_session_is_its_owners_alone() -> None:
    sessions = Sessions(SessionConfig())
    first, known = sessions.open("run-1", "arm-1", "key-a")
    assert not known and sessions.open("run-1", "arm-1", "key-a") == (first, True)
    for robot, owner in (("arm-2", "key-a"), ("arm-1", "key-b")):
        with pytest.raises(WireError) as caught:
            sessions.open("run-1", robot, owner)
        assert caught.value.kind == "forbidden"


def test_sessions_unused_for_long_are_forgotten_and_their_number_is_bounded() -> None:
    clock = Clock()
    sessions = Sessions(SessionConfig(max_sessions=2, forget_after_s=60), clock)
    for name in ("a", "b", "c"):
        sessions.open(name, "arm", "")
    assert len(sessions) == 2 and not sessions.open("a", "arm", "")[1]
    lost = []
    sessions.forgotten = lambda session: lost.append(session.name)
    clock.now += 61
    sessions.open("d", "arm", "")
    assert lost == ["c", "a"]
    assert len(sessions) == 1


def test_one_keys_flood_leaves_anothers_sessions() -> None:
    sessions, lost = Sessions(SessionConfig(max_sessions=4)), []
    sessions.forgotten = lambda session: lost.append(session.name)
    for name in ("a1", "a2"):
        sessions.open(name, "arm", "key-a")
    for number in range(20):
        sessions.open(f"b{number}", "leg", "key-b")
    assert len(sessions) == 4 and lost == [f"b{number}" for number in range(18)]
    sessions.open("a3", "arm", "key-a")
    assert lost[18:] == ["a1"] and sessions.find("b19", "leg", "key-b") is not None
    sessions.open("c1", "hand", "key-c")
    assert len(sessions) == 4 and sessions.find("a3", "arm", "key-a") is not None


def test_noise_depends_on_the_sessions_name_alone() -> None:
    one, other = Sessions(SessionConfig()), Sessions(SessionConfig())
    assert one.open("run", "arm", "")[0].noise_key(3) == other.open("run", "leg", "key")[0].noise_key(3)
