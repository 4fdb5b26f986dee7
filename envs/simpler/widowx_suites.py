"""Plan the official protocol on the WidowX: four tasks of 24 episodes, one variant each."""

from collections.abc import Mapping

import numpy as np

from st4vla.envs.simpler import put_on
from st4vla.envs.simpler.cases import Case
from st4vla.platform.contracts import EpisodeSpec
from st4vla.platform.errors import EnvError

SUITE, TRAINING, VARIANT = "simplerenv_widowx", "simplerenv_widowx_training", "official"
TASKS: Mapping[str, str] = {
    "spoon_on_towel": "PutSpoonOnTableClothInScene-v0",
    "carrot_on_plate": "PutCarrotOnPlateInScene-v0",
    "stack_cube": "StackGreenCubeOnYellowCubeBakedTexInScene-v0",
    "eggplant_in_basket": "PutEggplantInBasketScene-v0",
}
FACING = (0.0, 0.0, 0.0, 1.0)


def plan(suite: str, tasks: tuple[str, ...] = ()) -> list[EpisodeSpec]:
    """Plan the suite, or some of its tasks.

    Raises:
        EnvError: the suite or a task is not known.
    """
    if suite != SUITE:
        raise EnvError(f"There is no suite {suite!r} of the WidowX; expected {SUITE}.")
    return [
        EpisodeSpec(SUITE, task, VARIANT, number, _task(task).instruction)
        for task in tasks or tuple(TASKS)
        for number in range(_task(task).num_episodes)
    ]


def _task(task: str) -> put_on.PutOn:
    if task not in TASKS:
        raise EnvError(f"There is no task {task!r} of the WidowX; expected one of {', '.join(TASKS)}.")
    return put_on.TASKS[TASKS[task]]


def case_of(spec: EpisodeSpec) -> Case:
    """Give an episode of a plan in the original's words.

    Raises:
        EnvError: it is of no plan of this module.
    """
    task = _task(spec.task)
    sink = task.sink
    build = {
        "robot": "widowx_sink_camera_setup" if sink else "widowx",
        "control_freq": 5,
        "sim_freq": 500,
        "scene_name": "bridge_table_1_v2" if sink else "bridge_table_1_v1",
        "rgb_overlay_path": "bridge_sink.png" if sink else "bridge_real_eval_1.png",
        "rgb_overlay_cameras": ["3rd_view_camera"],
    }
    place = (0.127, 0.06) if sink else (0.147, 0.028)
    if spec.suite == TRAINING:
        nudge = np.random.RandomState(spec.seed % 2**32).uniform(0.003, 0.01, 2)
        place = (place[0] + float(nudge[0]), place[1] + float(nudge[1]))
    elif spec.suite != SUITE or spec.variant != VARIANT or not 0 <= spec.seed < task.num_episodes:
        raise EnvError(
            f"{spec.suite}, {spec.task}, {spec.variant!r} has no episode {spec.seed}; expected {SUITE}, "
            f"{VARIANT!r}, 0 to {task.num_episodes - 1}."
        )
    robot = {"init_xy": place, "init_rot_quat": FACING}
    return Case(TASKS[spec.task], build, robot, {"episode_id": spec.seed})


def training(task: str, index: int) -> EpisodeSpec:
    """Plan training episode `index`: the robot stands a few millimetres from where evaluations have it."""
    return EpisodeSpec(TRAINING, task, "training", index, _task(task).instruction)
