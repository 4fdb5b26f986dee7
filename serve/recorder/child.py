"""Keep the process alive that makes episodes of recordings, and hear what it did."""

import json
import logging
import os
import subprocess
import sys
import threading
import time
from collections import Counter

from st4vla.serve.events import Trouble
from st4vla.serve.recorder.settings import RecorderConfig
from st4vla.serve.recorder.shelf import command
from st4vla.serve.recorder.tapes import Report

log = logging.getLogger(__name__)
MAX_PAUSE_S = 30.0


class ShelfProcess:
    """The shelf's process; when it dies it is started again, after a pause that doubles while it keeps dying.

    `done` counts "written" and "refused" recordings; `restarts` how often the process had to be started again.
    """

    def __init__(self, config: RecorderConfig, owner: str, report: Report) -> None:
        self.config, self.owner, self._report = config, owner, report
        self.done: Counter[str] = Counter()
        self.restarts, self._pause_s, self._due, self._started = 0, 0.5, 0.0, 0.0
        self._process: subprocess.Popen[bytes] | None = None
        self._start()

    @property
    def pid(self) -> int:
        """Give the process id of the running, or last, process."""
        return self._process.pid if self._process else 0

    def look_after(self) -> None:
        """Start the process again if it is gone and its pause is over."""
        if self._process is not None and self._process.poll() is not None:
            self._bury(self._process)
        if self._process is None and time.monotonic() >= self._due:
            self.restarts += 1
            self._start()

    def wake(self) -> None:
        """Say that a recording is finished."""
        try:
            if self._process and self._process.stdin:
                self._process.stdin.write(b"\n")
        except OSError:
            # It is gone; look_after starts another, which sweeps at once.
            return

    def close(self, timeout_s: float) -> bool:
        """Let it finish what is left and end; say whether it did in time. If not, it goes on by itself."""
        if self._process is None:
            return False
        try:
            if self._process.stdin:
                self._process.stdin.close()
            self._process.wait(timeout_s)
        except (OSError, subprocess.TimeoutExpired):
            log.warning("recordings are still being made into episodes; process %d goes on with them", self.pid)
            return False
        return True

    def _start(self) -> None:
        self._started = time.monotonic()
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        self._process = subprocess.Popen(
            command(self.config, self.owner),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            env=environment,
            # A Ctrl-C on the terminal is for the server; this process ends when its input does.
            start_new_session=True,
        )
        threading.Thread(target=self._listen, args=(self._process,), name="recorder-shelf", daemon=True).start()

    def _bury(self, process: subprocess.Popen[bytes]) -> None:
        lived_s = time.monotonic() - self._started
        self._pause_s = 0.5 if lived_s > MAX_PAUSE_S else min(2 * self._pause_s, MAX_PAUSE_S)
        self._due, self._process = time.monotonic() + self._pause_s, None
        why = f"the recorder's process ended with {process.returncode} and is started again; nothing accepted is lost."
        self._report(Trouble("recorder_died", why))
        log.warning("%s", why)

    def _listen(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            told = json.loads(line)
            what = next(name for name in ("written", "refused", "waiting") if name in told)
            self.done[what] += 1
            if what == "written":
                log.info("recorded %d steps into %s", told["steps"], told["dataset"])
            else:
                self._report(Trouble(f"recording_{what}", told["reason"]))
                log.warning("recording %s is %s: %s", told[what], what, told["reason"])
