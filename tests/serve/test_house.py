"""A process that starts where the model in production cannot be loaded, or is to be replaced there."""

import asyncio
import logging
import os
import signal
import threading
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import pytest

from st4vla.platform.errors import ConfigError, WireError
from st4vla.serve.command import wait_for_the_end
from st4vla.serve.control import Control
from st4vla.serve.doors.groot import GrootConfig
from st4vla.serve.fleet_command import failed_models
from st4vla.serve.keymap import KeyMap
from st4vla.serve.post import NearControl, Post, PostConfig
from st4vla.serve.systems import as_refusal
from tests.serve.running import CONFIG

GOOD, OTHER, BROKEN, WORSE = "fixed-0-0@1", "fixed-0-0@2", "broken@3", "broken@4"


def told(folder: Path, models: tuple[str, ...], story: Callable[[Control], Awaitable[None]]) -> None:
    async def run() -> None:
        control = Control(str(folder))
        await control.begin({label: label for label in models}, models[0])
        await story(control)

    asyncio.run(run())


async def started(control: Control, config: PostConfig = CONFIG) -> Post:
    post = Post(config, NearControl(control))
    try:
        await post.start()
    except WireError:
        await post.close()
        raise
    return post


def test_a_replica_that_starts_after_an_update_that_cannot_be_loaded_answers_with_the_model_before(
    tmp_path: Path,
) -> None:
    async def story(control: Control) -> None:
        await control.update(BROKEN, BROKEN)
        post = await started(control)
        post.check_health()
        assert post.house.production == GOOD and post.house.choose("arm").label == GOOD
        assert "ValueError" in failed_models(await control.status())[BROKEN]
        # A second update that fails, too, must not make the first one's model the way back.
        await control.update(WORSE, WORSE)
        await post.close()
        again = await started(control)
        assert again.house.production == GOOD
        assert (await control.rollback()).routes.production == GOOD
        await again.close()

    told(tmp_path, (GOOD,), story)


def test_a_model_that_is_served_by_name_never_takes_the_place_of_production(tmp_path: Path) -> None:
    async def story(control: Control) -> None:
        post = await started(control)
        post.check_health()
        assert post.house.choose("arm", OTHER).label == OTHER
        with pytest.raises(WireError, match="production could not be loaded"):
            post.house.choose("arm")
        await post.close()

    told(tmp_path, (BROKEN, OTHER), story)


def test_a_process_for_which_every_model_failed_says_why_it_ends(tmp_path: Path) -> None:
    async def story(control: Control) -> None:
        with pytest.raises(WireError, match="broken@3: .*broken@4: "):
            await started(control)

    told(tmp_path, (BROKEN, WORSE), story)


ONE_CAMERA = KeyMap("mine", {"third_person": "video/front"})


@pytest.mark.parametrize(
    ("settings", "cause"),
    [
        ({"keys": ONE_CAMERA}, "keymap.images.wrist"),
        ({"vla_eval_keys": ONE_CAMERA, "vla_eval": True}, "keymap.images.wrist"),
        ({"groot": GrootConfig(port=1, keys=ONE_CAMERA)}, "keymap.images.wrist"),
        ({"groot": GrootConfig(port=1, actions={"arm": (0, 8)})}, "groot.actions.arm ends at 8"),
        ({"vla_eval_keys": ONE_CAMERA}, ""),
        ({"groot": GrootConfig(keys=ONE_CAMERA)}, ""),
    ],
)
def test_a_policy_that_a_door_in_use_cannot_show_what_it_needs_is_not_served(
    tmp_path: Path, settings: dict, cause: str
) -> None:
    async def story(control: Control) -> None:
        config = replace(CONFIG, **settings)
        if cause:
            with pytest.raises(WireError, match=cause):
                await started(control, config)
        else:
            await (await started(control, config)).close()

    told(tmp_path, (GOOD,), story)


def test_a_setting_at_fault_is_said_to_who_asks() -> None:
    refusal = as_refusal(ConfigError("keymap mine names no place for a camera"))
    assert (refusal.kind, refusal.message) == ("unavailable", "keymap mine names no place for a camera")


def test_a_renewal_that_fails_is_logged_and_ends_nothing(caplog: pytest.LogCaptureFixture) -> None:
    renewals: list[int] = []

    def renew() -> None:
        renewals.append(1)
        if len(renewals) == 1:
            os.kill(os.getpid(), signal.SIGHUP)
            raise RuntimeError("the deployment did not become healthy")
        os.kill(os.getpid(), signal.SIGTERM)

    def ask() -> None:
        while not renewals:
            os.kill(os.getpid(), signal.SIGHUP)
            time.sleep(0.02)

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        threading.Thread(target=ask, daemon=True).start()
        with caplog.at_level(logging.INFO):
            wait_for_the_end(renew)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert len(renewals) == 2 and [one.levelname for one in caplog.records] == ["ERROR", "INFO"]
