"""What a judge of a SimplerEnv task is: it looks at the scene after every control step and says what holds."""

from collections.abc import Mapping
from typing import Any, Protocol

from st4vla.envs.simpler.scene_view import SceneView
from st4vla.envs.simpler.setup import Setup

Verdict = dict[str, Any]


class Judge(Protocol):
    """One episode's judge; it is made once everything lies still and the robot is in its place.

    `before_step` hears that a control step begins, after `steps` others. `verdict` is asked once after every control
    step, since some tasks count, and gives the original's names, "success" among them. `stages` are the milestones
    of partial credit that were ever reached, of those in `all_stages`.
    """

    all_stages: tuple[str, ...]

    @property
    def instruction(self) -> str: ...
    def before_step(self, steps: int) -> None: ...
    def verdict(self) -> Verdict: ...
    def stages(self) -> tuple[str, ...]: ...
    def advance(self) -> None: ...


class Milestones:
    """Remember which milestones a task's verdicts have reached; judges build on it."""

    all_stages: tuple[str, ...] = ()

    def __init__(self) -> None:
        self._reached: list[str] = []

    def reach(self, verdict: Mapping[str, Any]) -> None:
        """Note the milestones that hold in a verdict."""
        for name in self.all_stages:
            if verdict.get(name) and name not in self._reached:
                self._reached.append(name)

    def stages(self) -> tuple[str, ...]:
        """Give what was ever reached, in the order of reaching."""
        return tuple(self._reached)

    def before_step(self, steps: int) -> None:
        """Most tasks do not care."""

    def advance(self) -> None:
        """Go on to the next sub-task; most tasks have one."""


def make_judge(setup: Setup, view: SceneView) -> Judge:
    """Make the judge of an episode, by the kind its setup names."""
    from st4vla.envs.simpler import drawer, move_near, pick, put_on

    makers: dict[str, Any] = {
        "pick": pick.PickJudge,
        "move_near": move_near.MoveNearJudge,
        "drawer": drawer.DrawerJudge,
        "place": drawer.PlaceJudge,
        "put_on": put_on.PutOnJudge,
    }
    return makers[setup.judge["kind"]](setup, view)
