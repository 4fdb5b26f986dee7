"""Facts about noticing what hangs."""

import os
import subprocess
import sys
import threading

import pytest

from st4vla.platform.errors import ConfigError
from st4vla.workers.rollout.watchdog import Stalled, WatchConfig, Watchdog

SHORT = WatchConfig(step_timeout_s=0.3, policy_timeout_s=0.6, reset_timeout_s=30)


def test_work_gives_its_value_and_its_error():
    watchdog = Watchdog(SHORT)
    assert watchdog.call(lambda: 7) == 7
    with pytest.raises(ZeroDivisionError):
        watchdog.call(lambda: 1 / 0)
    assert watchdog.call(threading.get_ident) == watchdog.call(threading.get_ident)
    assert not watchdog.stuck


@pytest.mark.parametrize(("part", "limit"), [("physics", "0.3"), ("policy", "0.6")])
def test_a_step_that_hangs_is_named_with_its_part(part: str, limit: str):
    watchdog, never = Watchdog(SHORT), threading.Event()

    def hang():
        watchdog.beat(part, "step 17")
        never.wait(60)

    with pytest.raises(Stalled, match=rf"{part} gave no answer within {limit} s \(step 17\)") as caught:
        watchdog.call(hang)
    assert (caught.value.part, watchdog.stuck) == (part, True)
    never.set()


def test_many_steps_that_each_end_in_time_are_no_stall():
    watchdog, pause = Watchdog(SHORT), threading.Event()

    def steps():
        for number in range(6):
            watchdog.beat("physics", f"step {number}")
            pause.wait(0.1)
        return "done"

    assert watchdog.call(steps) == "done"


HELD = """
import re, sys
from st4vla.workers.rollout.watchdog import WatchConfig, Watchdog
watchdog = Watchdog(WatchConfig(0.1, 0.1, 0.1), hard_exit=True)
watchdog.GRACE_S = 0.5
def hold_the_interpreter():
    watchdog.beat("physics", "step 1")
    re.match(r"(a+)+$", "a" * 40 + "b")
watchdog.call(hold_the_interpreter)
"""


def test_code_that_hangs_in_c_and_holds_the_interpreter_ends_its_process():
    done = subprocess.run([sys.executable, "-c", HELD], capture_output=True, timeout=60, env=os.environ.copy())
    assert done.returncode == 1
    assert b"hold_the_interpreter" in done.stderr


def test_what_may_have_to_build_something_may_take_longer():
    config = WatchConfig(1, 2, 3)
    assert [config.limit("render", step) for step in ("first look", "look 1, step 8")] == [3, 1]
    assert [config.limit("physics", step) for step in ("reset", "step 0")] == [3, 1]
    assert config.limit("policy", "first look") == 2


def test_a_limit_of_nothing_is_refused():
    with pytest.raises(ConfigError, match=r"watch\.step_timeout_s is 0"):
        WatchConfig(step_timeout_s=0)
