"""Run one simulated tabletop world: reset to a spec, step by actions, look when asked, record, and judge.

A world is pooled: it is built once and reset for each episode. Every reset moves the bodies into a new PhysX scene,
so that an episode is bitwise the same in a fresh world and after any other. Pictures come from a separate stage
that is posed from the recorded state, and is built only when somebody first looks.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import sapien
import torch

from st4vla.envs import annotate, focus, layout, perturbations, states, tabletop, tasks
from st4vla.envs.control import FINGER_OPEN_M
from st4vla.envs.geometry import yaw_of
from st4vla.envs.instructions import instruction, names_of
from st4vla.envs.objects import INDEX
from st4vla.envs.physics import renew_physics
from st4vla.envs.progress import Progress
from st4vla.envs.recording import View, pack, unpack
from st4vla.envs.stage import Frame, Stage
from st4vla.envs.suites import wording_of
from st4vla.platform.contracts import EpisodeSpec, FrameAnnotation, Observation, PolicySpec
from st4vla.platform.errors import ConfigError, EnvError

ACTION_DIM = 7
CAMERAS = ("third_person", "wrist")


@dataclass(frozen=True)
class WorldConfig:
    """What one world offers.

    Attributes:
        task: the only task its episodes may have; "" for any.
        image_size: pixels, width and height of every camera.
        cameras: the cameras that may be asked for; without any, no renderer is ever built.
    """

    task: str = ""
    image_size: int = 128
    cameras: tuple[str, ...] = CAMERAS

    def __post_init__(self) -> None:
        if self.task:
            layout.check_task(self.task)
        if not 32 <= self.image_size <= 1024 or self.image_size % annotate.MASK_STEP:
            raise ConfigError(f"image_size is {self.image_size}; choose a multiple of 4 from 32 to 1024.")
        unknown = [camera for camera in self.cameras if camera not in CAMERAS]
        if unknown:
            raise ConfigError(f"cameras has {unknown}; choose among {', '.join(CAMERAS)}.")


class TabletopWorld:
    """One world; `stage` may be shared with the other worlds of a process, whose episodes then take turns to look.

    Its actions are those of the contracts, so `embodiment` names no executor.
    """

    embodiment = ""
    control_hz = float(tabletop.CONTROL_HZ)

    def __init__(self, config: WorldConfig = WorldConfig(), stage: Stage | None = None):  # noqa: B008 (frozen)
        self.config = config
        self._stage = stage
        self._env: tabletop.TabletopEnv | None = None
        self._spec: EpisodeSpec | None = None
        self.scene: layout.Scene
        self.steps = 0
        self.perturbed_at: int | None = None

    def reset(self, spec: EpisodeSpec) -> None:
        """Set out the scene of a spec.

        Raises:
            EnvError: the spec's task, variant or a perturbation is not known, or not this world's.
        """
        if self.config.task and spec.task != self.config.task:
            raise EnvError(
                f"This world runs {self.config.task!r}, the spec asks for {spec.task!r}; make another world."
            )
        perturbations.check(spec.perturbations)
        self.scene = layout.draw_scene(spec.task, spec.variant, spec.seed)
        self._reset_physics(spec)
        self._spec, self._instruction, self.steps, self.perturbed_at = spec, spec.instruction, 0, None
        self._due = {name: perturbations.due_step(name, self.scene, spec.seed) for name in spec.perturbations}
        self._starts, self._start_tcp = self._poses()[:, :3], self.tcp[0]
        self._reached: list[str] = []
        self._judge()

    def _reset_physics(self, spec: EpisodeSpec) -> None:
        if self._env is None:
            self._env = tabletop.make_env(
                spec.task,
                num_envs=1,
                obs_mode="none",
                reward_mode="none",
                sim_backend="physx_cpu",
                render_backend="none",
            )
        self._env.task = spec.task
        renew_physics(self._env)
        self._env.reset(seed=spec.seed % 2**31, options={"scenes": [self.scene]})
        self._robot = self._env.agent.robot._objs[0]
        self._tcp_entity = self._env.agent.tcp._objs[0].entity
        self._bodies = [self._env.things[INDEX[thing.name]]._objs[0] for thing in self.scene.things]

    @property
    def env(self) -> tabletop.TabletopEnv:
        """The ManiSkill environment underneath.

        Raises:
            EnvError: the world has not been reset yet.
        """
        if self._env is None:
            raise EnvError("The world has no episode yet; call reset(spec) first.")
        return self._env

    @property
    def instruction(self) -> str:
        """What the policy is told now; a perturbation may have changed it."""
        return self._instruction

    @property
    def max_steps(self) -> int:
        """Control steps after which the episode's time is up."""
        return tasks.MAX_STEPS[self.scene.task]

    @property
    def tcp(self) -> tuple[np.ndarray, np.ndarray]:
        """Position [3] m in the world frame and quaternion wxyz [4] of the point between the finger tips."""
        pose = self._tcp_entity.pose
        return pose.p.astype(np.float64), pose.q.astype(np.float64)

    @property
    def commanded_tcp(self) -> tuple[np.ndarray, np.ndarray]:
        """Position [3] and quaternion [4], world frame, that the arm was last told to reach."""
        pose = self.env.agent.controller.controllers["arm"]._target_pose.raw_pose[0].numpy().astype(np.float64)
        return pose[:3] + states.BASE, pose[3:]

    @property
    def opening(self) -> float:
        """Gripper, 0 closed .. 1 open, as it is."""
        return float(np.clip(self._robot.qpos[-2:].mean() / FINGER_OPEN_M, 0.0, 1.0))

    def thing_pose(self, index: int) -> np.ndarray:
        """Pose [7] in the world frame of the scene's thing `index`."""
        pose = self._bodies[index].pose
        return np.concatenate([pose.p, pose.q]).astype(np.float64)

    def _poses(self) -> np.ndarray:
        return np.stack([self.thing_pose(index) for index in range(len(self._bodies))])

    def step(self, action: np.ndarray) -> None:
        """Execute one action [7] for one control step; due perturbations come first. Never renders.

        Raises:
            EnvError: the action has another shape or is not finite.
        """
        action = np.asarray(action, dtype=np.float32)
        if action.shape != (ACTION_DIM,) or not np.isfinite(action).all():
            raise EnvError(f"The action is {action.tolist()}; expected {ACTION_DIM} finite numbers.")
        self._perturb()
        env = self.env
        env.agent.set_action(torch.from_numpy(action)[None])
        for _ in range(tabletop.SIM_HZ // tabletop.CONTROL_HZ):
            env.scene.px.step()
        self.steps += 1
        self._judge()

    def hold_action(self) -> np.ndarray:
        """Give the action [7] that moves nothing and keeps the gripper as it is commanded now."""
        fingers = self.env.agent.controller.controllers["gripper"]._target_qpos[0, 0]
        opening = tabletop.opening_of(float(fingers))
        return np.array([0, 0, 0, 0, 0, 0, opening], dtype=np.float32)

    def situation(self) -> tasks.Situation:
        """Give what the judges look at, unbatched float64 (M targets)."""
        scene, targets = self.scene, list(self.scene.targets)
        positions = self._poses()[:, :3]
        places = positions[list(scene.destinations)] if scene.destinations else np.zeros((len(targets), 3))
        return tasks.Situation(
            tcp=self.tcp[0],
            opening=np.float64(self.opening),
            targets=positions[targets],
            half_heights=np.array([scene.things[index].shape.half_height for index in targets]),
            starts=self._starts[targets],
            start_tcp=self._start_tcp,
            destinations=places,
            direction=scene.direction,
        )

    def _judge(self) -> None:
        self._outcome = tasks.JUDGES[self.scene.task](self.situation())
        for name, reached in zip(tasks.stage_names(self.scene), self._outcome.stages, strict=True):
            if reached and name not in self._reached:
                self._reached.append(name)

    def progress(self) -> Progress:
        """Judge the episode as it stands."""
        return Progress(bool(self._outcome.success), float(self._outcome.credit), tuple(self._reached))

    def focus(self) -> focus.Focus:
        """Say which target comes next and the sub-goal."""
        return focus.focus(self.scene, self.situation())

    def _perturb(self) -> None:
        """Apply the perturbations that are due; one that cannot happen now is put off to the next step."""
        for name in [name for name, due in self._due.items() if due <= self.steps]:
            done = self._move_object() if name == perturbations.OBJECT_MOVED else self._change_instruction()
            if done:
                del self._due[name]
                self.perturbed_at = self.steps

    def _move_object(self) -> bool:
        situation, seed = self.situation(), self._seed
        index = self.scene.targets[focus.focus(self.scene, situation).which]
        if np.linalg.norm(situation.tcp - self.thing_pose(index)[:3]) < tasks.HELD_DISTANCE_M + 0.01:
            return False
        place = perturbations.shifted_position(self.scene, index, self._poses()[:, :3], situation.tcp, seed)
        if place is None:
            return False
        body = self._bodies[index]
        body.set_pose(sapien.Pose(place.tolist(), self.scene.poses[index, 3:].tolist()))
        component: Any = body.find_component_by_type(sapien.physx.PhysxRigidDynamicComponent)
        component.linear_velocity = component.angular_velocity = np.zeros(3)
        self._starts[index] = place
        return True

    def _change_instruction(self) -> bool:
        placed = tuple(bool(stage) for stage in self._outcome.stages) if self.scene.task == "sort_three" else ()
        self.scene = perturbations.retargeted(self.scene, placed, self._seed)
        wording = wording_of(self._spec.suite if self._spec is not None else "")
        self._instruction = instruction(self.scene.task, names_of(self.scene), self._seed, wording)
        self._reached = []
        return True

    @property
    def _seed(self) -> int:
        if self._spec is None:
            raise EnvError("The world has no episode yet; call reset(spec) first.")
        return self._spec.seed

    def observe(self, spec: PolicySpec) -> Observation:
        """Show a policy what it asks for: its cameras' pictures, none of them rendered otherwise, and its state.

        Raises:
            EnvError: the policy wants cameras, an image size or a state that this world does not have.
        """
        images: Mapping[str, np.ndarray] = {}
        if spec.cameras:
            if spec.image_size not in (0, self.config.image_size):
                raise EnvError(f"The policy wants {spec.image_size} px, the world has {self.config.image_size} px.")
            frames = self.render_snapshot(self.snapshot(), spec.cameras)
            images = {camera: frame.rgb for camera, frame in frames.items()}
        return Observation(images, self._state(spec), self.instruction)

    def _state(self, spec: PolicySpec) -> np.ndarray | None:
        if spec.state_dim == 0:
            return None
        state = self.privileged_state() if spec.state_form == "privileged" else self.proprioception()
        if len(state) != spec.state_dim:
            raise EnvError(f"The policy wants a {spec.state_form} state of {spec.state_dim}; it has {len(state)} here.")
        return state

    def proprioception(self) -> np.ndarray:
        """Give the robot's own reading, float32 [7] (`states.proprioception`)."""
        return states.proprioception(*self.tcp, self.opening)

    def privileged_state(self) -> np.ndarray:
        """Give the simulator's full state, float32 [32] (`states.privileged`)."""
        situation = self.situation()
        which, _ = focus.focus(self.scene, situation)
        yaw = yaw_of(self.thing_pose(self.scene.targets[which])[3:])
        time_left = 1.0 - self.steps / self.max_steps
        return states.privileged(self.scene.task, situation, which, yaw, self.proprioception(), time_left)

    def snapshot(self) -> np.ndarray:
        """Record this moment as one float32 row (`recording`): enough to render and to annotate it later."""
        which, sub_goal = self.focus()
        places = self.scene.destinations
        view = View(
            target=self.scene.targets[which],
            destination=places[which] if places else -1,
            sub_goal=sub_goal,
            tcp=self.tcp[0],
            qpos=self._robot.qpos,
            poses=self._poses(),
        )
        return pack(view)

    def render_snapshot(self, snapshot: np.ndarray, cameras: tuple[str, ...] | None = None) -> dict[str, Frame]:
        """Render a recorded moment of this episode, bitwise as `observe` showed it; all cameras unless some are named.

        Raises:
            EnvError: a camera is asked for that the config does not list.
        """
        wanted = self.config.cameras if cameras is None else cameras
        missing = [camera for camera in wanted if camera not in self.config.cameras]
        if missing:
            raise EnvError(f"There is no camera {missing[0]!r} in this world; it has {list(self.config.cameras)}.")
        if self._stage is None:
            self._stage = Stage(self.config.image_size)
        view = unpack(snapshot)
        self._stage.pose(self.scene, view.qpos, view.poses)
        return self._stage.photograph(self.scene, wanted)

    def annotate(
        self, snapshot: np.ndarray, frames: Mapping[str, Frame], future_tcp: np.ndarray
    ) -> dict[str, FrameAnnotation]:
        """Annotate a recorded moment's frames; `future_tcp` [N,3] from `annotate.stage_path`."""
        return annotate.annotate(self.scene, unpack(snapshot), frames, future_tcp)

    def annotate_all(
        self, snapshots: list[np.ndarray], frames: list[dict[str, Frame]]
    ) -> list[dict[str, FrameAnnotation]]:
        """Annotate a whole recording of this episode, each moment's trace leading to the end of its stage."""
        views = [unpack(row) for row in snapshots]
        return [
            annotate.annotate(self.scene, view, pictures, annotate.stage_path(views, now))
            for now, (view, pictures) in enumerate(zip(views, frames, strict=True))
        ]

    def close(self) -> None:
        """Give the scenes back."""
        for part in (self._env, self._stage):
            if part is not None:
                part.close()
        self._env = self._stage = None
