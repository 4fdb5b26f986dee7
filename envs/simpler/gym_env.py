"""Register the original's environments as gymnasium ids, "simpler/<the original's id>".

    import st4vla.envs.simpler.gym_env
    original = {"prepackaged_config": True}                       # the original's build options
    env = gymnasium.make("simpler/OpenTopDrawerCustomInScene-v0", original=original, obs_mode="rgb+segmentation")
    env.reset(seed=0, options={"obj_init_options": {...}})        # the original's reset options

Batched on a GPU (`num_envs`, `sim_backend="physx_cuda"`) the rows draw their episodes with seed, seed + 1, ...; they
must be of one build. Written, not yet run there: docs/simplerenv.md lists what differs.

As in the original a reset without a seed draws one from the last (the first row's): a new environment gives the same
sequence of episodes every time, and a reset with a seed begins the sequence of that seed.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from mani_skill.utils.registration import register_env

from st4vla.envs.simpler import drawer, move_near, pick, put_on
from st4vla.envs.simpler.assets import AssetTree, check_assets, find_tree
from st4vla.envs.simpler.batch_view import BatchView
from st4vla.envs.simpler.cases import FIRST_SEED, Case, next_seed, resolve, resolvers
from st4vla.envs.simpler.env import SimplerEnv
from st4vla.envs.simpler.judging import Judge, make_judge
from st4vla.envs.simpler.overlay import photograph
from st4vla.envs.simpler.setup import Setup
from st4vla.platform.errors import EnvError

PREFIX = "simpler/"
RESET_KEYS = ("robot_init_options", "obj_init_options")


class SimplerTaskEnv(SimplerEnv):
    """One environment of the original behind gymnasium's interface; success in `info` is the original's, every step."""

    def __init__(
        self,
        *args: Any,
        task: str,
        original: Mapping[str, Any] | None = None,
        tree: AssetTree | None = None,
        **kwargs: Any,
    ):
        self.task, self.original = task, dict(original or {})
        self.original.setdefault("control_freq", 5 if task.startswith(("Put", "Stack")) else 3)
        self.original.setdefault("sim_freq", 500 if task.startswith(("Put", "Stack")) else 513)
        self.tree = tree or find_tree()
        self._last_seed = FIRST_SEED
        self.setups: list[Setup] = self._resolve(self._seeds(FIRST_SEED, int(kwargs.get("num_envs", 1))), {})
        self.judges: list[Judge] = []
        first = self.setups[0]
        super().__init__(*args, build=first.build, layout=first.layout, tree=self.tree, **kwargs)

    def _seeds(self, seed: int | Sequence[int] | None, rows: int) -> list[int]:
        """Give the seed of each row."""
        start = next_seed(self._last_seed) if seed is None else seed
        if isinstance(start, int | np.integer):
            return [(int(start) + row) % 2**32 for row in range(rows)]
        return [int(one) for one in start]

    def _resolve(self, seeds: Sequence[int], options: Mapping[str, Any]) -> list[Setup]:
        rest = {key: value for key, value in options.items() if key not in (*RESET_KEYS, "reconfigure", "env_idx")}
        robot, obj = (options.get(key) or {} for key in RESET_KEYS)
        setups = [resolve(Case(self.task, self.original, robot, obj, rest, seed), self.tree) for seed in seeds]
        check_assets(setups[0], self.tree)
        if any(setup.build != setups[0].build for setup in setups):
            raise EnvError("The rows of one batch would need different scenes; give options that fix the objects.")
        return setups

    def reset(self, seed: int | Sequence[int] | None = None, options: dict | None = None) -> tuple[Any, dict]:
        options = dict(options or {})
        if "env_idx" in options:
            raise EnvError("SimplerEnv's rows are reset together; leave env_idx out.")
        seeds = self._seeds(seed, self.num_envs)
        self.setups = self._resolve(seeds, options)
        self._last_seed = seeds[0]
        rebuilt = options.get("reconfigure", False) or self.setups[0].build != self.build
        self.build = self.setups[0].build
        wanted = {"reconfigure": rebuilt, "layouts": [setup.layout for setup in self.setups]}
        return super().reset(seed=seeds, options=wanted)

    def _initialize_episode(self, env_idx: torch.Tensor, options: dict) -> None:
        super()._initialize_episode(env_idx, options)
        views = [BatchView(self, row) for row in range(self.num_envs)]
        self.judges = [make_judge(setup, view) for setup, view in zip(self.setups, views, strict=True)]  # type: ignore[arg-type]

    def step(self, action: Any) -> tuple[Any, Any, Any, Any, dict]:
        for judge in self.judges:
            judge.before_step(int(self.elapsed_steps[0]))
        return super().step(action)

    def advance_to_next_subtask(self) -> None:
        """Go on to the next sub-task in every row."""
        for judge in self.judges:
            judge.advance()

    def instructions(self) -> list[str]:
        """Give what each row's policy is told now."""
        return [judge.instruction for judge in self.judges]

    def evaluate(self) -> dict[str, torch.Tensor]:
        """Judge; asked at a reset nothing has been done yet."""
        if not self.judges or int(self.elapsed_steps[0]) == 0:
            return {"success": torch.zeros(self.num_envs, dtype=torch.bool, device=self.device)}
        verdicts = [judge.verdict() for judge in self.judges]
        flags = [key for key, value in verdicts[0].items() if isinstance(value, bool)]
        return {key: torch.tensor([verdict[key] for verdict in verdicts], device=self.device) for key in flags}

    def _get_obs_sensor_data(self, apply_texture_transforms: bool = True) -> dict:
        """Lay the photograph over what is not foreground, where both colour and segmentation are asked for."""
        data = super()._get_obs_sensor_data(apply_texture_transforms)
        view = self.setups[0].view
        shown = data.get(view.camera, {})
        if not view.overlay or "rgb" not in shown or "segmentation" not in shown:
            return data
        height, width = shown["rgb"].shape[1:3]
        photo = torch.from_numpy(photograph(self.tree.overlay(view.overlay), width, height)).to(self.device)
        kept = torch.isin(shown["segmentation"], self._foreground(view.covered))
        shown["rgb"] = torch.where(kept, shown["rgb"], photo[None])
        return data

    def _foreground(self, covered: Sequence[str]) -> torch.Tensor:
        bodies: list[Any] = list(self.agent.robot.links)
        bodies += [] if self.cabinet is None or "cabinet" in covered else list(self.cabinet.links)
        bodies += [actor for name, actor in self.things.items() if name not in covered]
        return torch.unique(torch.cat([body.per_scene_id for body in bodies])).to(self.device)


def max_steps(env_id: str) -> int:
    """Give the control steps of an episode of that environment."""
    if env_id in put_on.TASKS:
        return put_on.TASKS[env_id].max_steps
    if env_id in drawer.KINDS:
        return drawer.PLACE_STEPS if drawer.KINDS[env_id].verb == "place" else drawer.OPEN_STEPS
    return pick.MAX_STEPS if env_id in pick.KINDS else move_near.MAX_STEPS


def register() -> None:
    """Register every environment that has a resolver; doing it twice changes nothing."""
    for env_id in resolvers():
        register_env(PREFIX + env_id, max_episode_steps=max_steps(env_id), override=True, task=env_id)(SimplerTaskEnv)


register()
