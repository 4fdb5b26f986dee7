"""Run SimplerEnv's episodes one at a time in pooled scenes: reset, step by raw actions, look, judge.

Scenes are known by their builds: an episode with an equal build reuses one, whatever its task. Every reset moves the
bodies into a new PhysX scene, so that an episode is bitwise the same in a fresh world and after any other.
"""

from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import cv2
import gymnasium
import numpy as np
from scipy.spatial.transform import Rotation

from st4vla.envs.physics import renew_physics
from st4vla.envs.progress import Progress
from st4vla.envs.simpler import env as environments
from st4vla.envs.simpler.assets import AssetTree, check_assets, find_tree
from st4vla.envs.simpler.cases import Case, resolve
from st4vla.envs.simpler.judging import Judge, Verdict, make_judge
from st4vla.envs.simpler.robot import RobotModel, robot_model
from st4vla.envs.simpler.scene_view import SceneView
from st4vla.envs.simpler.setup import Build, Setup
from st4vla.envs.simpler.stage import Frame, Stage, rows_of
from st4vla.platform.contracts import EpisodeSpec, Observation, PolicySpec
from st4vla.platform.errors import ConfigError, EnvError

ACTION_DIM = 7
POSE_DIM = 7


@dataclass(frozen=True)
class SimplerWorldConfig:
    """What one world offers.

    Attributes:
        assets: root of the asset tree; "" finds it (`assets.find_tree`).
        pooled: scenes, and stages, that are kept for later episodes with the same build.
        ray_traced: draw with the ray tracer where the original's protocol does; needs a GPU that can.
    """

    assets: str = ""
    pooled: int = 4
    ray_traced: bool = False

    def __post_init__(self) -> None:
        if self.pooled < 1:
            raise ConfigError(f"pooled is {self.pooled}; at least 1 scene is kept.")


class _Pool:
    """Keep the least long unused of what is costly to make; the others are closed."""

    def __init__(self, size: int):
        self._size, self._kept = size, OrderedDict()

    def get(self, key: Any, make: Callable[[], Any]) -> Any:
        if key not in self._kept:
            while len(self._kept) >= self._size:
                self._kept.popitem(last=False)[1].close()
            self._kept[key] = make()
        self._kept.move_to_end(key)
        return self._kept[key]

    def close(self) -> None:
        for item in self._kept.values():
            item.close()
        self._kept.clear()


class SimplerWorld:
    """One world of any of SimplerEnv's tasks; `step` takes the raw 7 numbers of the original's controller.

    Attributes:
        setup: the episode, resolved.
        view: the scene, to be read.
        judge: the episode's judge.
        verdict: what it said after the last control step, by the original's names; {} right after a reset.
        steps: control steps done.
    """

    def __init__(self, config: SimplerWorldConfig = SimplerWorldConfig(), tree: AssetTree | None = None):  # noqa: B008
        self.config = config
        self.tree = tree or find_tree(config.assets or None)
        self._scenes, self._stages = _Pool(config.pooled), _Pool(config.pooled)
        self._env: environments.SimplerEnv | None = None
        self.setup: Setup
        self.view: SceneView
        self.judge: Judge
        self.verdict: Verdict = {}
        self.steps = 0
        self.perturbed_at: int | None = None

    def reset(self, spec: EpisodeSpec) -> None:
        """Set out the episode of a plan.

        Raises:
            EnvError: the spec is not of a suite of SimplerEnv, or files that it needs are missing.
        """
        from st4vla.envs.simpler.suites import case_of

        self.reset_case(case_of(spec))

    def reset_case(self, case: Case) -> None:
        """Set out an episode given in the original's words.

        Raises:
            EnvError: the case is not known, or files that it needs are missing.
        """
        self.reset_setup(resolve(case, self.tree))

    def reset_setup(self, setup: Setup) -> None:
        """Set out an episode that was resolved before."""
        check_assets(setup, self.tree)
        self.setup = setup
        physics = setup.build.physics()
        env = self._env = self._scenes.get(physics, lambda: self._make_env(physics, setup))
        renew_physics(env)
        env.reset(seed=0, options={"layouts": [setup.layout]})
        self.view = SceneView(env)
        self.judge = make_judge(setup, self.view)
        self.verdict, self.steps, self.perturbed_at = {}, 0, None

    def _make_env(self, build: Build, setup: Setup) -> environments.SimplerEnv:
        return gymnasium.make(
            environments.ENV_ID,
            build=build,
            layout=setup.layout,
            tree=self.tree,
            lean=True,
            num_envs=1,
            obs_mode="none",
            reward_mode="none",
            sim_backend="physx_cpu",
            render_backend="none",
        ).unwrapped  # type: ignore[return-value]

    @property
    def env(self) -> environments.SimplerEnv:
        """The ManiSkill environment underneath.

        Raises:
            EnvError: the world has not been reset yet.
        """
        if self._env is None:
            raise EnvError("The world has no episode yet; call reset(spec) first.")
        return self._env

    @property
    def robot(self) -> RobotModel:
        """The robot's description."""
        return robot_model(self.setup.build.robot)

    @property
    def embodiment(self) -> str:
        """Name the robot family, by which a policy's chunks are turned into raw actions."""
        return self.robot.embodiment

    @property
    def control_hz(self) -> float:
        """Control steps per second."""
        return float(self.setup.build.control_hz)

    @property
    def instruction(self) -> str:
        """What the policy is told now; it changes with the sub-task."""
        return self.judge.instruction

    @property
    def max_steps(self) -> int:
        """Control steps after which the episode's time is up; success is what holds at the last."""
        return self.setup.max_steps

    def step(self, action: np.ndarray) -> None:
        """Execute one raw action [7] for one control step; never renders.

        Raises:
            EnvError: the action has another shape or is not finite.
        """
        action = np.asarray(action, dtype=np.float64)
        if action.shape != (ACTION_DIM,) or not np.isfinite(action).all():
            raise EnvError(f"The action is {action.tolist()}; expected {ACTION_DIM} finite numbers.")
        self.judge.before_step(self.steps)
        self.env.run_control_step(action)
        self.steps += 1
        self.view.refresh()
        self.verdict = self.judge.verdict()

    def advance_to_next_subtask(self) -> None:
        """Go on to the next sub-task, as a policy of the original may say."""
        self.judge.advance()

    def hold_action(self) -> np.ndarray:
        """Give the raw action [7] that moves nothing and keeps the gripper as it is told now."""
        controller: Any = self.env.agent.controller
        return controller.planners[0].hold_action().astype(np.float32)

    def progress(self) -> Progress:
        """Say how the last control step was judged, and what was reached so far."""
        stages, success = self.judge.stages(), bool(self.verdict.get("success", False))
        credit = 1.0 if success else len(stages) / (len(self.judge.all_stages) + 1)
        return Progress(success, credit, stages)

    def observe(self, spec: PolicySpec) -> Observation:
        """Show a policy what it asks for: its cameras' pictures at its size or the camera's, and its state.

        A policy sees the one camera that the robot has, whatever it calls it.

        Raises:
            EnvError: the policy wants several cameras, or a state that this world does not have.
        """
        images: Mapping[str, np.ndarray] = {}
        if spec.cameras:
            if len(spec.cameras) > 1:
                raise EnvError(f"The policy wants cameras {list(spec.cameras)}; SimplerEnv shows one.")
            rgb, size = self.picture(), (spec.image_size, spec.image_size)
            shown = cv2.resize(rgb, size, interpolation=cv2.INTER_AREA) if spec.image_size else rgb
            images = {next(iter(spec.cameras)): shown}
        return Observation(images, self._state(spec), self.instruction)

    def picture(self) -> np.ndarray:
        """Give what the camera sees now in full, uint8 [H,W,3], the photograph laid over it."""
        return next(iter(self.render_snapshot(self.snapshot()).values())).rgb

    def _state(self, spec: PolicySpec) -> np.ndarray | None:
        if spec.state_dim == 0:
            return None
        if spec.state_form == "privileged":
            raise EnvError("The policy wants a privileged state; SimplerEnv has none, only proprioception.")
        state = self.proprioception()
        if len(state) != spec.state_dim:
            raise EnvError(f"The policy wants a state of {spec.state_dim}; the robot's reading has {len(state)}.")
        return state

    def proprioception(self) -> np.ndarray:
        """Give float32 [7]: the tool in the base frame, m and rotation vector, and the gripper 0 closed .. 1 open."""
        tool = self.env.agent.robot._objs[0].pose.inv() * self.view.tcp
        turn = Rotation.from_quat(tool.q[[1, 2, 3, 0]]).as_rotvec()
        return np.array([*tool.p, *turn, self.robot.opening(self.view.qpos())], dtype=np.float32)

    def snapshot(self) -> np.ndarray:
        """Record this moment as one float32 row: the poses of all that is seen, and of the camera."""
        camera = self.robot.camera
        poses = [self.view.entity_pose(name) for name in self.view.names()]
        poses.append(self.view.entity_pose(f"robot/{camera.link}") * camera.local_pose)
        return rows_of(poses).ravel()

    def _stage(self) -> Stage:
        build = self.setup.build
        drawn = build if self.config.ray_traced else replace(build, shader="default")
        return self._stages.get(drawn, lambda: Stage(drawn, self.tree))

    def render_snapshot(self, snapshot: np.ndarray, cameras: tuple[str, ...] | None = None) -> dict[str, Frame]:
        """Render a recorded moment of this episode, bitwise as `observe` showed it."""
        stage = self._stage()
        rows = snapshot.reshape(-1, POSE_DIM)
        stage.pose(dict(zip(self.view.names(), rows[:-1], strict=True)), rows[-1])
        name = cameras[0] if cameras else self.robot.camera.name
        return {name: stage.photograph(self.setup.view)}

    def segment_names(self) -> tuple[str, ...]:
        """Name what the numbers of a frame's segmentation stand for, from 1 on."""
        return self._stage().names

    def close(self) -> None:
        """Give the scenes back."""
        self._scenes.close()
        self._stages.close()
        self._env = None
