"""Render what a world recorded: a second set of the same scene that is posed and photographed, never simulated.

Physics and pictures stay apart, so that nothing is rendered unless somebody looks, a recorded state gives bitwise
the picture it gave live, and the physics scene can be renewed without touching the renderer.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import sapien

from st4vla.envs import objects, tabletop
from st4vla.envs.layout import Scene
from st4vla.platform.machine import render_backend


@dataclass(frozen=True)
class Frame:
    """One camera's picture.

    Attributes:
        rgb: uint8 [H,W,3].
        segmentation: int8 [H,W]; index into the scene's things + 1, 0 for everything else.
        intrinsic: float64 [3,3], pixels.
        extrinsic: float64 [3,4], world to camera; x right, y down, z forward.
    """

    rgb: np.ndarray
    segmentation: np.ndarray
    intrinsic: np.ndarray
    extrinsic: np.ndarray

    def project(self, points: np.ndarray) -> np.ndarray:
        """Project world points [N,3] to pixels [N,2]; points behind the camera become NaN."""
        inside = points @ self.extrinsic[:, :3].T + self.extrinsic[:, 3]
        depth = np.where(inside[:, 2:] > 1e-6, inside[:, 2:], np.nan)
        return (inside @ self.intrinsic.T)[:, :2] / depth


class Stage:
    """Hold the rendered twin of the tabletop; one serves every world and task of a process."""

    def __init__(self, image_size: int = 128):
        self.image_size = image_size
        self._env = tabletop.make_env(
            "reach",
            image_size=image_size,
            num_envs=1,
            obs_mode="none",
            reward_mode="none",
            sim_backend="physx_cpu",
            render_backend=render_backend(),
            sensor_configs={"shader_pack": "minimal", "width": image_size, "height": image_size},
        )
        self._robot = self._env.agent.robot._objs[0]
        self._entities = [actor._objs[0] for actor in self._env.things]
        sensors: dict[str, Any] = self._env._sensors
        self._cameras = {name: sensor.camera._render_cameras[0] for name, sensor in sensors.items()}
        self._on_table = set(range(len(objects.LIBRARY)))  # whatever the first reset drew goes to the shelf

    @property
    def cameras(self) -> tuple[str, ...]:
        """Names of the cameras there are."""
        return tuple(self._cameras)

    def pose(self, scene: Scene, qpos: np.ndarray, poses: np.ndarray) -> None:
        """Put the robot (qpos [9]) and the scene's things (poses [K,7]) where they are to be seen."""
        wanted = [objects.INDEX[thing.name] for thing in scene.things]
        for index in self._on_table - set(wanted):
            shelf = self._env.shelf_poses[index]
            self._entities[index].set_pose(sapien.Pose(shelf[:3], shelf[3:]))
        for index, pose in zip(wanted, poses, strict=True):
            self._entities[index].set_pose(sapien.Pose(pose[:3], pose[3:]))
        self._on_table = set(wanted)
        self._robot.set_qpos(qpos)
        self._env.scene.sub_scenes[0].update_render()

    def photograph(self, scene: Scene, cameras: Sequence[str]) -> dict[str, Frame]:
        """Take the pictures of these cameras of what was posed last."""
        table = np.zeros(256, dtype=np.int8)
        for number, thing in enumerate(scene.things, start=1):
            table[self._entities[objects.INDEX[thing.name]].per_scene_id] = number
        return {name: self._take(self._cameras[name], table) for name in cameras}

    def _take(self, camera: Any, table: np.ndarray) -> Frame:
        camera.take_picture()
        ids = camera.get_picture("PositionSegmentation")[..., 3]
        return Frame(
            rgb=np.ascontiguousarray(camera.get_picture("Color")[..., :3]),
            segmentation=table[ids],
            intrinsic=camera.get_intrinsic_matrix().astype(np.float64),
            extrinsic=camera.get_extrinsic_matrix()[:3].astype(np.float64),
        )

    def close(self) -> None:
        """Give the scene back."""
        self._env.close()
