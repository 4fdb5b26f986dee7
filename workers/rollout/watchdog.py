"""Notice that a world or a policy no longer answers, and go on without it.

Work runs in a thread of its own and says before each step what it does next (`beat`). The thread that waits for it
gives up when one step lasts too long; the hung thread cannot be ended, so its process must be replaced afterwards.
Where foreign code hangs while it holds the interpreter, nobody here can act: a timer in C ends the process then,
and the pool sees an actor that died.
"""

import faulthandler
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from st4vla.platform.errors import ConfigError

TICK_S = 0.2
FIRST = "first "  # how a step is called that may have to build something


@dataclass(frozen=True)
class WatchConfig:
    """How long one thing may take.

    Attributes:
        step_timeout_s: one control step, or one picture after the first.
        policy_timeout_s: one answer of a policy; longer than what its own client waits, which knows more.
        reset_timeout_s: building and resetting a world, and the first picture of an episode, for which a stage may
            have to be built and shaders compiled.
    """

    step_timeout_s: float = 120.0
    policy_timeout_s: float = 150.0
    reset_timeout_s: float = 600.0

    def __post_init__(self) -> None:
        for name in ("step_timeout_s", "policy_timeout_s", "reset_timeout_s"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"watch.{name} is {getattr(self, name)}; expected more than 0 seconds.")

    def limit(self, part: str, step: str) -> float:
        """Give the seconds that a part may take for a step."""
        if part == "policy":
            return self.policy_timeout_s
        return self.reset_timeout_s if step == "reset" or step.startswith(FIRST) else self.step_timeout_s


class Stalled(Exception):
    """One step lasted too long; `part` is who was at it (physics, render, policy), `step` says where."""

    def __init__(self, part: str, step: str, limit_s: float):
        super().__init__(f"{part} gave no answer within {limit_s:g} s ({step})")
        self.part = part


class Watchdog:
    """Run work in one thread, in which its worlds live, and watch it.

    After `Stalled` it is of no more use: `stuck` is True and its thread is lost.
    """

    GRACE_S = 10.0  # how much longer the timer in C waits than this class

    def __init__(
        self, config: WatchConfig, clock: Callable[[], float] = time.monotonic, hard_exit: bool = False
    ) -> None:
        self._config = config
        self._clock = clock
        self._hard_exit = hard_exit
        self._work: queue.SimpleQueue[tuple[Callable[[], Any], queue.SimpleQueue]] = queue.SimpleQueue()
        self._now = ("", "", 0.0, 0.0)
        self.stuck = False
        threading.Thread(target=self._serve, name="rollout", daemon=True).start()

    def beat(self, part: str, step: str) -> None:
        """Say what comes next; the work calls it."""
        self._now = (part, step, self._config.limit(part, step), self._clock())

    def call(self, work: Callable[[], Any]) -> Any:
        """Run `work` in the thread and give what it gives, or raise what it raises.

        Raises:
            Stalled: one step of it lasted longer than it may.
        """
        self.beat("physics", "reset")
        answer: queue.SimpleQueue[tuple[Any, BaseException | None]] = queue.SimpleQueue()
        self._work.put((work, answer))
        try:
            value, error = self._wait(answer)
        finally:
            if self._hard_exit:
                faulthandler.cancel_dump_traceback_later()
        if error is not None:
            raise error
        return value

    def _wait(self, answer: queue.SimpleQueue) -> tuple[Any, BaseException | None]:
        while True:
            part, step, limit, since = self._now
            if self._hard_exit:
                faulthandler.dump_traceback_later(limit + self.GRACE_S, exit=True, file=2)
            try:
                return answer.get(timeout=TICK_S)
            except queue.Empty:
                if self._now[3] == since and self._clock() - since > limit:
                    self.stuck = True
                    raise Stalled(part, step, limit) from None

    def _serve(self) -> None:
        while True:
            work, answer = self._work.get()
            try:
                answer.put((work(), None))
            except BaseException as error:  # handed to the one who waits
                answer.put((None, error))
