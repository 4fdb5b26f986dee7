"""Photograph scenes at rest, for grounding: nothing moves, so a picture costs two camera frames and no physics.

A base checkpoint learns to point from these; demonstrations then add grasped things and hidden ones.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from st4vla.envs import annotate, focus, instructions
from st4vla.envs.control import HOME_QPOS
from st4vla.envs.layout import draw_scene, generator
from st4vla.envs.recording import View
from st4vla.envs.stage import Stage
from st4vla.platform.data.stills import Still

# Over the table in all directions, mostly forward, the tool roughly downwards.
JOINTS_LOW_RAD = np.array([-0.40, -0.10, -0.10, -0.30, -0.15, -0.30, -0.50])
JOINTS_HIGH_RAD = np.array([0.40, 0.50, 0.10, 0.45, 0.15, 0.30, 0.50])


def draw_joints(seed: int) -> np.ndarray:
    """Draw an arm posture [9] about the home posture: the hand somewhere over the table, fingers anywhere."""
    rng = generator(seed, "posture")
    joints = HOME_QPOS[:7] + rng.uniform(JOINTS_LOW_RAD, JOINTS_HIGH_RAD)
    return np.concatenate([joints, np.repeat(rng.uniform(0.0, HOME_QPOS[7]), 2)])


def photograph(stage: Stage, task: str, seed: int, cameras: Sequence[str]) -> list[Still]:
    """Photograph the scene of one seed under a drawn posture, once by each camera."""
    scene = draw_scene(task, "default", seed)
    joints = draw_joints(seed)
    destination = scene.destinations[0] if scene.destinations else -1
    view = View(scene.targets[0], destination, focus.SUB_GOALS[0], np.zeros(3), joints, scene.poses)
    stage.pose(scene, joints, scene.poses)
    frames = stage.photograph(scene, cameras)
    # Nobody moves in a still: no trace, and no sub-goal that a posture drawn blindly would give the lie.
    notes = annotate.annotate(scene, view, frames, np.zeros((0, 3)))
    words = instructions.instruction(task, instructions.names_of(scene), seed, "seen")
    return [Still(words, name, frame.rgb, replace(notes[name], subgoal="")) for name, frame in frames.items()]
