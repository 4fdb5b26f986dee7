"""Keep worlds to run many episodes in, and make of what goes wrong in one its result."""

import logging
from collections import OrderedDict
from collections.abc import Callable

from st4vla.platform.contracts import EpisodeSpec
from st4vla.platform.errors import PolicyError, WorkerLost
from st4vla.workers.rollout.episode import Beat, Rollout, RolloutOptions, World, failed_result, no_beat, run_episode
from st4vla.workers.rollout.inference import PolicyClient

log = logging.getLogger(__name__)


class RolloutWorker:
    """Run episodes in pooled worlds: one for each key that the specs have, built once and reset for each episode.

    A world that raised is closed and built again for the next episode, as its state is unknown; the rollout says that
    the process is spent, since what broke it (a lost Vulkan device, a file that is not here) may hold for all its
    worlds. Of more than `max_worlds` the one that was not used for longest is closed.
    """

    def __init__(
        self,
        make_world: Callable[[str], World],
        make_client: Callable[[World], PolicyClient],
        options: RolloutOptions,
        key_of: Callable[[EpisodeSpec], str] = lambda spec: "",
        max_worlds: int = 4,
    ):
        self._make_world = make_world
        self._make_client = make_client
        self._options = options
        self._key_of = key_of
        self._max_worlds = max_worlds
        self._pooled: OrderedDict[str, tuple[World, PolicyClient]] = OrderedDict()

    def run(self, spec: EpisodeSpec, beat: Beat = no_beat) -> Rollout:
        """Run one episode; what goes wrong in it becomes its result, except the loss of another worker."""
        try:
            beat("physics", "reset")
            world, client = self.pooled(spec)
            return run_episode(world, client, spec, self._options, beat=beat)
        except WorkerLost:
            self.drop(spec)
            raise
        except PolicyError as error:
            return Rollout(failed_result(spec, "policy", str(error)), None)
        except Exception as error:  # isolation boundary: one crashed episode must not end the others
            log.exception("episode %s of %s crashed", spec.episode_id, spec.task)
            self.drop(spec)
            return Rollout(failed_result(spec, "crash", f"{type(error).__name__}: {error}"), None, spent=True)

    def pooled(self, spec: EpisodeSpec) -> tuple[World, PolicyClient]:
        """Give the world of a spec and its client, built at first use."""
        key = self._key_of(spec)
        if key not in self._pooled:
            while len(self._pooled) >= self._max_worlds:
                self._close(*self._pooled.popitem(last=False))
            world = self._make_world(key)
            self._pooled[key] = (world, self._make_client(world))
        self._pooled.move_to_end(key)
        return self._pooled[key]

    def drop(self, spec: EpisodeSpec) -> None:
        """Close the world of a spec, if there is one."""
        key = self._key_of(spec)
        if (pooled := self._pooled.pop(key, None)) is not None:
            self._close(key, pooled)

    def close(self) -> None:
        """Close all worlds."""
        while self._pooled:
            self._close(*self._pooled.popitem())

    def _close(self, key: str, pooled: tuple[World, PolicyClient]) -> None:
        try:
            pooled[0].close()
        except Exception:  # it has already failed; what matters is that it is not used again
            log.exception("closing the world %r failed", key)
