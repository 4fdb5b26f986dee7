"""Let objects down onto the table as the original does, before the robot comes."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import sapien
import torch
from mani_skill.utils.structs import Pose

from st4vla.envs.simpler.setup import FREE, Drop, Fall, Layout

if TYPE_CHECKING:
    from st4vla.envs.simpler.env import SimplerEnv

FALL_S, FREE_FALL_S, MORE_S = 0.5, 0.5, 1.5
STILL_M_S, STILL_RAD_S = 1e-3, 1e-2


def settle(env: "SimplerEnv", layouts: Sequence[Layout], rows: torch.Tensor) -> None:
    """Run the falls of these rows' layouts, one layout per row."""
    if env.gpu_sim_enabled:
        _settle_batch(env, layouts, rows)
        return
    for fall in layouts[0].falls:
        _run(env, fall)


def _run(env: "SimplerEnv", fall: Fall) -> None:
    bodies = [body_of(env.things[drop.name]) for drop in fall.drops]
    groups = [[pair] for pair in zip(bodies, fall.drops, strict=True)]
    if not fall.one_by_one:
        groups = [[pair for group in groups for pair in group]]
    for group in groups:
        for body, drop in group:
            _place(body, drop, fall.locked)
        wait(env, FALL_S)
    for group in groups:
        for body, _ in group:
            body.set_locked_motion_axes(list(FREE))
            body.entity.set_pose(body.entity.pose)  # wakes it
            stop(body)
        wait(env, FREE_FALL_S)
    moving = sum(float(np.linalg.norm(body.linear_velocity)) for body in bodies)
    turning = sum(float(np.linalg.norm(body.angular_velocity)) for body in bodies)
    if moving > STILL_M_S or turning > STILL_RAD_S:
        wait(env, MORE_S)


def _place(body: Any, drop: Drop, locked: Sequence[bool]) -> None:
    body.entity.set_pose(sapien.Pose(drop.position, drop.quaternion))
    stop(body)
    body.set_locked_motion_axes(list(locked))


def stop(body: Any) -> None:
    """Take a body's speed away."""
    body.set_linear_velocity(np.zeros(3))
    body.set_angular_velocity(np.zeros(3))


def body_of(actor: Any) -> Any:
    """Give the rigid body of an actor of a single scene."""
    return actor._objs[0].find_component_by_type(sapien.physx.PhysxRigidDynamicComponent)


def wait(env: "SimplerEnv", seconds: float) -> None:
    """Run the physics, with nobody commanding the robot."""
    for _ in range(int(env.build.sim_hz * seconds)):
        env.scene.px.step()


def _settle_batch(env: "SimplerEnv", layouts: Sequence[Layout], rows: torch.Tensor) -> None:
    """Let everything fall at once with no motion locked (GPU physics; written and not yet run)."""
    for name, actor in env.things.items():
        drops = [next((d for fall in layout.falls for d in fall.drops if d.name == name), None) for layout in layouts]
        if any(drop is None for drop in drops):
            continue
        poses = [[*drop.position, *drop.quaternion] for drop in drops if drop is not None]
        actor.set_pose(Pose.create(torch.tensor(poses, dtype=torch.float32, device=env.device)))
        actor.set_linear_velocity(torch.zeros(3, device=env.device))
        actor.set_angular_velocity(torch.zeros(3, device=env.device))
    env.scene._gpu_apply_all()
    for _ in range(int(env.build.sim_hz * (FALL_S + FREE_FALL_S + MORE_S))):
        env.scene.px.step()
    env.scene._gpu_fetch_all()
