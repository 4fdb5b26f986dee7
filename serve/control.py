"""Keep and change the record of what a fleet's server should be doing (`state.py`), and wake those who follow it.

Every replica follows it; whoever administrates changes it. A replica that cannot reach the keeper goes on with what it
last heard.
"""

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from st4vla.platform.errors import ConfigError, WireError
from st4vla.serve.access import KeyFile
from st4vla.serve.state import FLEET, RECORD, Routes, State, recorded, write_record

log = logging.getLogger(__name__)
REPORT_LIVES_S = 15.0


class Control:
    """Keep the state, change it, and wake those who follow it. `ControlActor` is this class as a Ray actor.

    One lives in a cluster; Ray restarts it when it dies, and it reads its file. While it is away nothing can be
    changed, and replicas go on as they were.
    """

    def __init__(self, folder: str):
        self._folder = Path(folder)
        self._state = recorded(self._folder)
        # Ray restarts a keeper with the folder that it was first made with.
        if self._state is not None and self._state.folder and (moved := recorded(Path(self._state.folder))):
            self._folder, self._state = Path(self._state.folder), moved
        self._changed = asyncio.Condition()
        self._reports: dict[str, tuple[float, dict[str, Any]]] = {}
        self._keys_read: tuple[float, int] | None = None
        self._trouble = ""
        self._unwritten = ""

    async def begin(
        self, models: Mapping[str, str], production: str, keys_required: bool = False, folder: str = ""
    ) -> State:
        """Start a deployment: these models, this one in production, the generation after the last; stops stay set.

        The other models are served beside production, and stay so whatever is in production later.

        Args:
            keys_required: whether there are keys where the deployment was started, which may be another machine.
            folder: where the record and the keys lie from now on; "" leaves them.
        """
        before = self._folder
        if folder and Path(folder) != before:
            self._move(Path(folder))
        old = self._state
        previous = self._way_back(old.routes, production) if old and old.routes.production != production else ""
        kept = {previous: old.routes.models[previous]} if old and previous in old.routes.models else {}
        beside = tuple(label for label in models if label != production)
        routes = Routes({**kept, **models}, production, previous if kept else "", beside=beside)
        base = old or State(routes)
        base = replace(base, keys_required=keys_required or base.keys_required, folder="")
        state = await self._become(replace(base, routes=routes, generation=base.generation + 1, ending=False))
        if self._folder != before:
            write_record(before, replace(state, folder=folder))
        return state

    async def renew(self) -> State:
        """Start a deployment of the same models: the generation after the last."""
        state = self._current()
        return await self._become(replace(state, generation=state.generation + 1))

    async def end(self) -> State:
        """Let every replica finish, before the application is taken down."""
        return await self._become(replace(self._current(), ending=True))

    async def watch(self, revision: int, wait_s: float = 10.0) -> State | None:
        """Give the state as soon as it is newer than `revision`; None when it is not within `wait_s`."""
        deadline = time.monotonic() + wait_s
        while True:
            await self._follow_keys()
            if self._state is not None and self._state.revision > revision:
                return self._state
            left = deadline - time.monotonic()
            if left <= 0:
                return None
            # Not `wait_for`: until Python 3.12 it lost a cancellation that came with a change, and went on for ever.
            async with self._changed:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(min(left, 1.0)):
                        await self._changed.wait()

    async def update(self, label: str, reference: str) -> State:
        """Let a model answer everybody; each replica changes over once it has loaded it. A canary ends with it.

        The way back is to the model before, but not to one that no replica could load.
        """
        state = self._current()
        routes = state.routes
        models = {**routes.models, label: reference}
        updated = Routes(models, label, self._way_back(routes, label), beside=routes.beside)
        return await self._become(replace(state, routes=updated.pruned()))

    async def canary(self, label: str, reference: str, share: float, robots: tuple[str, ...]) -> State:
        """Let a model answer some robots, and a share of the others; it takes the place of an earlier canary.

        Raises:
            WireError: the share is not one.
        """
        if not 0 <= share <= 1:
            raise WireError("invalid", "share", "A share lies in 0 to 1.")
        state = self._current()
        models = {**state.routes.models, label: reference}
        routes = replace(state.routes, models=models, canary=label, share=share, robots=robots)
        return await self._become(replace(state, routes=routes.pruned()))

    async def promote(self) -> State:
        """Let the canary answer everybody.

        Raises:
            WireError: there is none.
        """
        state = self._current()
        if not state.routes.canary:
            raise WireError("invalid", "", "There is no canary to promote.")
        return await self.update(state.routes.canary, state.routes.models[state.routes.canary])

    async def rollback(self) -> State:
        """End the canary if there is one; else let the previous model answer everybody again, at once.

        Raises:
            WireError: there is neither.
        """
        state = self._current()
        routes = state.routes
        if routes.canary:
            back = replace(routes, canary="", share=0.0, robots=()).pruned()
        elif routes.previous:
            back = replace(routes, production=routes.previous, previous=routes.production)
        else:
            raise WireError("invalid", "", "There is no canary and no model before this one.")
        return await self._become(replace(state, routes=back))

    async def stop(self, robot: str = FLEET, reason: str = "") -> State:
        """Refuse actions to a robot, or to the whole fleet, until it is released.

        A stop holds also where the record cannot be written; the status then says so.
        """
        state = self._current()
        stopped = {**state.stopped, robot: reason or "emergency stop"}
        return await self._become(replace(state, stopped=stopped), in_any_case=True)

    async def release(self, robot: str = FLEET) -> State:
        """Give actions to a robot, or to the fleet, again."""
        state = self._current()
        stopped = {name: why for name, why in state.stopped.items() if name != robot}
        return await self._become(replace(state, stopped=stopped))

    async def report(self, replica: str, status: dict[str, Any]) -> None:
        """Take in how a replica is."""
        self._reports[replica] = (time.monotonic(), status)

    async def status(self) -> dict[str, Any]:
        """Give the state and what every living replica last reported."""
        trouble = " ".join(filter(None, (self._unwritten, self._trouble)))
        return {**self._current().as_plain(), "trouble": trouble, "replicas": self._living()}

    def _living(self) -> dict[str, dict[str, Any]]:
        """Give the last report of each replica that is still heard of."""
        now = time.monotonic()
        self._reports = {name: kept for name, kept in self._reports.items() if now - kept[0] < REPORT_LIVES_S}
        return {name: kept[1] for name, kept in self._reports.items()}

    def _way_back(self, routes: Routes, label: str) -> str:
        """Say what to go back to once `label` answers in place of what did so far; "" for nothing."""
        is_kept = routes.production == label or self._is_broken(routes.production)
        previous = routes.previous if is_kept else routes.production
        return previous if previous != label else ""

    def _is_broken(self, label: str) -> bool:
        """Whether a replica failed to load a model, and none has loaded it."""
        reports = self._living().values()
        return any(label in one["failed"] for one in reports) and not any(label in one["loaded"] for one in reports)

    def _current(self) -> State:
        if self._state is None:
            raise WireError("unavailable", "", "Nothing is deployed yet.")
        return self._state

    async def _follow_keys(self) -> None:
        """Take up keys that were added or revoked; a file that cannot be read leaves those that are known.

        Whatever is wrong with it is said once, and again in the status: stops must reach the robots all the same.
        """
        try:
            await self._read_keys()
            trouble = ""
        except (OSError, ConfigError) as error:
            trouble = f"The keys cannot be taken up, those that were known before hold: {error}"
        if trouble and trouble != self._trouble:
            log.error("%s", trouble)
        self._trouble = trouble

    async def _read_keys(self) -> None:
        file = KeyFile(self._folder / "keys.json")
        try:
            entry = os.stat(file.path)
        except FileNotFoundError:
            if self._state is not None and self._state.keys_required and not self._state.keys:
                raise ConfigError(
                    f"keys are asked for and there is no {file.path}, so nobody is let in; the folder must be one that "
                    "every machine sees, and hold a key"
                ) from None
            return
        if self._state is not None and self._keys_read != (seen := (entry.st_mtime_ns, entry.st_ino)):
            keys = file.read()
            required = self._state.keys_required or bool(keys)
            await self._become(replace(self._state, keys=keys, keys_required=required), in_any_case=True)
            self._keys_read = seen

    def _move(self, folder: Path) -> None:
        """Go on in another folder: the stops that stand there hold beside ours, its keys in place of ours."""
        there, here = recorded(folder), self._state
        self._folder, self._keys_read, self._state = folder, None, here or there
        if here is not None:
            stopped = {**(there.stopped if there else {}), **here.stopped}
            required = here.keys_required or (there is not None and there.keys_required)
            self._state = replace(here, stopped=stopped, keys_required=required, keys=())

    async def _become(self, state: State, in_any_case: bool = False) -> State:
        """Take up a state and wake who follows.

        Args:
            in_any_case: also where the record cannot be written: for what protects.

        Raises:
            WireError: "unavailable": the record cannot be written.
        """
        state = replace(state, revision=state.revision + 1)
        try:
            write_record(self._folder, state)
            self._unwritten = ""
        except OSError as error:
            why = f"{self._folder / RECORD} cannot be written ({error.strerror}); free some space and try again."
            if not in_any_case:
                raise WireError("unavailable", "", f"Nothing was changed: {why}") from error
            self._unwritten = f"Stops and keys hold, but the newest would be forgotten with their keeper: {why}"
            log.error("%s", self._unwritten)
        self._state = state
        async with self._changed:
            self._changed.notify_all()
        return state
