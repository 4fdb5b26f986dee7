"""The control record survives its keeper, wakes its followers, and knows the way back."""

import asyncio
import resource
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import pytest

from st4vla.platform.errors import WireError
from st4vla.serve.access import KeyFile, Lock, RateConfig
from st4vla.serve.control import Control
from st4vla.serve.desk import Desk
from st4vla.serve.events import Observers
from st4vla.serve.house import House, in_canary
from st4vla.serve.replica import ReplicaConfig
from st4vla.serve.state import Routes, State, recorded


def told(folder: Path, story: Callable[[Control], Awaitable[None]]) -> None:
    async def run() -> None:
        control = Control(str(folder))
        await control.begin({"a@1": "/a"}, "a@1")
        await story(control)

    asyncio.run(run())


def routes_of(state: State) -> tuple[str, str, str]:
    return state.routes.production, state.routes.previous, state.routes.canary


def test_an_update_and_its_rollback(tmp_path: Path) -> None:
    async def story(control: Control) -> None:
        assert routes_of(await control.update("b@1", "/b")) == ("b@1", "a@1", "")
        assert routes_of(await control.rollback()) == ("a@1", "b@1", "")
        assert routes_of(await control.rollback()) == ("b@1", "a@1", "")

    told(tmp_path, story)


def test_a_canary_is_promoted_or_ended(tmp_path: Path) -> None:
    async def story(control: Control) -> None:
        state = await control.canary("b@1", "/b", 0.5, ("arm",))
        assert routes_of(state) == ("a@1", "", "b@1") and state.routes.needed == ("a@1", "b@1")
        ended = await control.rollback()
        assert routes_of(ended) == ("a@1", "", "") and dict(ended.routes.models) == {"a@1": "/a"}
        await control.canary("b@1", "/b", 0.5, ())
        assert routes_of(await control.promote()) == ("b@1", "a@1", "")

    told(tmp_path, story)


def test_what_is_not_possible_is_refused(tmp_path: Path) -> None:
    async def story(control: Control) -> None:
        for wrong in (control.promote(), control.rollback(), control.canary("b@1", "/b", 1.5, ())):
            with pytest.raises(WireError):
                await wrong

    told(tmp_path, story)


def test_only_the_model_before_is_kept(tmp_path: Path) -> None:
    async def story(control: Control) -> None:
        for label in ("b@1", "c@1", "d@1"):
            state = await control.update(label, f"/{label}")
        assert set(state.routes.models) == {"c@1", "d@1"}

    told(tmp_path, story)


def test_what_is_served_beside_outlives_updates_and_the_way_back(tmp_path: Path) -> None:
    async def story(control: Control) -> None:
        await control.begin({"a@1": "/a", "b@1": "/b"}, "a@1")
        for label in ("c@1", "d@1", "b@1", "e@1"):
            state = await control.update(label, f"/{label}")
        assert state.routes.models == {"e@1": "/e@1", "b@1": "/b@1"} and state.routes.beside == ("b@1",)
        await control.rollback()
        await control.canary("f@1", "/f", 0.5, ())
        state = await control.promote()
        assert set(state.routes.models) == {"f@1", "b@1"}
        again = await Control(str(tmp_path)).watch(0, wait_s=1)
        assert again is not None and again.routes.beside == ("b@1",)

    told(tmp_path, story)


@pytest.mark.parametrize("label", ["a@1", "b@1", "z@1"])
def test_ending_a_canary_that_is_also_served_otherwise_keeps_its_reference(tmp_path: Path, label: str) -> None:
    async def story(control: Control) -> None:
        await control.begin({"a@1": "/a", "b@1": "/b"}, "a@1")
        await control.update("z@1", "/z")
        await control.update("a@1", "/a")
        await control.canary(label, f"/{label[0]}", 0.5, ())
        state = await control.rollback()
        assert state.routes.models == {"a@1": "/a", "b@1": "/b", "z@1": "/z"} and not state.routes.canary

    told(tmp_path, story)


def test_a_second_canary_takes_the_place_of_the_first(tmp_path: Path) -> None:
    async def story(control: Control) -> None:
        for label in ("b@1", "c@1", "d@1"):
            state = await control.canary(label, f"/{label}", 0.5, ())
        assert set(state.routes.models) == {"a@1", "d@1"} == set(state.routes.needed)

    told(tmp_path, story)


def test_a_stop_is_for_one_robot_or_for_all(tmp_path: Path) -> None:
    async def story(control: Control) -> None:
        state = await control.stop("arm", "smoke")
        assert state.stop_reason("arm") == "smoke" and state.stop_reason("leg") is None
        state = await control.stop()
        assert state.stop_reason("leg") == "emergency stop"
        state = await control.release()
        assert state.stop_reason("leg") is None and state.stop_reason("arm") == "smoke"

    told(tmp_path, story)


def test_a_stop_holds_where_the_record_cannot_be_written_and_nothing_else_is_changed(tmp_path: Path) -> None:
    async def story(control: Control) -> None:
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (10, before[1]))  # Python ignores the signal that comes with it
        try:
            assert (await control.stop("arm-1", "smoke")).stop_reason("arm-1") == "smoke"
            assert "control.json cannot be written (File too large)" in (await control.status())["trouble"]
            with pytest.raises(WireError, match="Nothing was changed: .*free some space") as refused:
                await control.release("arm-1")
            assert refused.value.kind == "unavailable"
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert (await control.status())["stopped"] == {"arm-1": "smoke"}
        await control.stop("arm-2", "fire")
        assert (await control.status())["trouble"] == ""

    told(tmp_path, story)
    kept = recorded(tmp_path)
    assert kept is not None and dict(kept.stopped) == {"arm-1": "smoke", "arm-2": "fire"}


def test_a_restarted_keeper_goes_on_where_it_was(tmp_path: Path) -> None:
    async def story(control: Control) -> None:
        await control.stop("arm", "smoke")
        state = await control.update("b@1", "/b")
        again = await Control(str(tmp_path)).watch(0, wait_s=1)
        assert again is not None and again.as_plain() == state.as_plain()

    told(tmp_path, story)


def test_a_new_deployment_keeps_stops_and_the_way_back(tmp_path: Path) -> None:
    async def story(control: Control) -> None:
        await control.stop("arm", "smoke")
        state = await control.begin({"b@1": "/b"}, "b@1")
        assert routes_of(state) == ("b@1", "a@1", "") and state.generation == 2 and "arm" in state.stopped
        assert (await control.renew()).generation == 3

    told(tmp_path, story)


def test_followers_are_woken(tmp_path: Path) -> None:
    async def story(control: Control) -> None:
        state = await control.watch(0)
        assert state is not None
        waiting = asyncio.create_task(control.watch(state.revision, wait_s=20))
        await asyncio.sleep(0.05)
        assert not waiting.done()
        await control.stop("arm")
        newer = await waiting
        assert newer is not None and newer.revision == state.revision + 1
        assert await control.watch(newer.revision, wait_s=0) is None

    told(tmp_path, story)


def test_keys_that_are_added_and_revoked_reach_followers(tmp_path: Path) -> None:
    async def story(control: Control) -> None:
        state = await control.watch(0)
        keys = KeyFile(tmp_path / "keys.json")
        key_id = keys.add("robot", ["act"]).split("_")[1]
        assert state is not None and state.keys == ()
        state = await control.watch(state.revision, wait_s=5)
        assert state is not None and [key.key_id for key in state.keys] == [key_id]
        keys.revoke(key_id)
        state = await control.watch(state.revision, wait_s=5)
        assert state is not None and state.keys[0].revoked_at
        assert "salt" not in (tmp_path / "control.json").read_text()

    told(tmp_path, story)


def test_a_canarys_share_is_drawn_by_name_and_holds() -> None:
    routes = Routes({"a@1": "", "b@1": ""}, "a@1", canary="b@1", share=0.25, robots=("vip",))
    chosen = [in_canary(f"robot-{i}", routes) for i in range(400)]
    assert 70 <= sum(chosen) <= 130 and chosen == [in_canary(f"robot-{i}", routes) for i in range(400)]
    assert in_canary("vip", routes)


class Follower:
    """A desk that follows a record, with no models to load."""

    def __init__(self) -> None:
        self.desk = Desk(House(lambda place: None, ReplicaConfig()), Lock(None), RateConfig(), Observers())

    async def follow(self, control: Control) -> None:
        state = await control.watch(0, wait_s=1)
        assert state is not None
        await self.desk.follow(replace(state, routes=Routes({}, "")))

    def admits(self, key: str = "") -> bool:
        try:
            self.desk.lock.admit(f"Api-Key {key}" if key else None, "act")
        except WireError:
            return False
        return True


def test_a_keeper_that_sees_no_keys_where_there_were_some_lets_nobody_in(tmp_path: Path) -> None:
    async def story() -> None:
        elsewhere, follower = Control(str(tmp_path)), Follower()
        await elsewhere.begin({"a@1": "/a"}, "a@1", keys_required=True, folder=str(tmp_path))
        await follower.follow(elsewhere)
        assert not follower.admits() and not follower.desk.lock.is_open
        assert "there is no" in (await elsewhere.status())["trouble"]
        restarted, follower = Control(str(tmp_path)), Follower()
        await follower.follow(restarted)
        assert not follower.admits()
        key = KeyFile(tmp_path / "keys.json").add("robot", ["act"])
        await follower.follow(restarted)
        assert follower.admits(key) and not follower.admits()

    asyncio.run(story())


def test_keys_that_were_seen_once_are_asked_for_ever_after(tmp_path: Path) -> None:
    async def story() -> None:
        control, keys = Control(str(tmp_path)), KeyFile(tmp_path / "keys.json")
        await control.begin({"a@1": "/a"}, "a@1")
        first = Follower()
        await first.follow(control)
        assert first.admits()
        keys.add("robot", ["act"])
        await first.follow(control)
        assert not first.admits()
        keys.path.unlink()
        again, second = Control(str(tmp_path)), Follower()
        await again.begin({"a@1": "/a"}, "a@1", keys_required=False)
        for follower in (first, second):
            await follower.follow(again)
            assert not follower.admits()

    asyncio.run(story())


def test_another_folder_brings_its_own_keys_and_loses_no_stop(tmp_path: Path) -> None:
    async def story() -> None:
        old, new = tmp_path / "old", tmp_path / "new"
        before = Control(str(new))
        await before.begin({"a@1": "/a"}, "a@1")
        await before.stop("leg", "jam")
        control = Control(str(old))
        await control.begin({"a@1": "/a"}, "a@1", folder=str(old))
        await control.stop("arm", "smoke")
        key = KeyFile(new / "keys.json").add("robot", ["act"])
        await control.begin({"b@1": "/b"}, "b@1", True, str(new))
        for keeper in (control, Control(str(old)), Control(str(new))):
            follower = Follower()
            await follower.follow(keeper)
            assert follower.admits(key) and not follower.admits()
            assert dict(follower.desk.state.stopped) == {"leg": "jam", "arm": "smoke"}

    asyncio.run(story())


@pytest.mark.parametrize("broken", ["{", '[{"key_id": 1}]', "[" * 100_000])
def test_keys_that_cannot_be_read_hold_up_no_stop_and_leave_those_that_are_known(
    tmp_path: Path, broken: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def story(control: Control) -> None:
        keys = KeyFile(tmp_path / "keys.json")
        key_id = keys.add("robot", ["act"]).split("_")[1]
        state = await control.watch(0)
        good = keys.path.read_text()
        keys.path.write_text(broken)
        assert state is not None and await control.watch(state.revision, wait_s=0) is None
        waiting = asyncio.create_task(control.watch(state.revision, wait_s=20))
        await asyncio.sleep(0)
        await control.stop("arm", "smoke")
        stopped = await waiting
        assert stopped is not None and stopped.stop_reason("arm") == "smoke"
        assert [key.key_id for key in stopped.keys] == [key_id]
        assert len(caplog.records) == 1 and "keys.json" in (await control.status())["trouble"]
        keys.path.write_text(good)
        assert await control.watch(stopped.revision, wait_s=0) is not None
        assert (await control.status())["trouble"] == ""

    told(tmp_path, story)


def test_the_way_back_is_never_a_model_that_no_replica_could_load(tmp_path: Path) -> None:
    async def story(control: Control) -> None:
        await control.update("b@1", "/b")
        await control.report("r", {"loaded": {"a@1": {}}, "failed": {"b@1": "ValueError: torn"}})
        assert routes_of(await control.update("c@1", "/c")) == ("c@1", "a@1", "")
        await control.report("r", {"loaded": {"a@1": {}}, "failed": {"c@1": "ValueError: torn"}})
        assert routes_of(await control.begin({"d@1": "/d"}, "d@1")) == ("d@1", "a@1", "")
        await control.report("r", {"loaded": {"a@1": {}}, "failed": {"d@1": "ValueError: torn"}})
        assert routes_of(await control.update("a@1", "/a")) == ("a@1", "", "")

    told(tmp_path, story)


@pytest.mark.parametrize("turns", range(5))
def test_a_follower_that_is_cancelled_as_a_change_comes_ends(tmp_path: Path, turns: int):
    async def story() -> bool:
        control = Control(str(tmp_path))
        revision = (await control.begin({"a@1": "a"}, "a@1")).revision

        async def follow() -> None:
            nonlocal revision
            while True:
                state = await control.watch(revision)
                revision = state.revision if state else revision

        follower = asyncio.create_task(follow())
        await asyncio.sleep(0.01)
        await control.update("b@2", "b")
        for _ in range(turns):
            await asyncio.sleep(0)
        follower.cancel()
        return bool((await asyncio.wait([follower], timeout=5))[0])

    assert asyncio.run(story())
