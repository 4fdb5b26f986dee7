"""What the planner sees, read out: the object its next step names, its box, and the way there."""

import numpy as np
import pytest

from st4vla.platform.errors import PolicyError
from st4vla.platform.policy.grounding import ground
from st4vla.platform.policy.read_out import named_object, read_out


@pytest.mark.parametrize(
    ("step", "name"),
    [
        ("move beside the red cube", "red cube"),
        ("grasp the cyan bar", "cyan bar"),
        ("push the blue bar to the left", "blue bar"),
        ("move to the right the green bar", "green bar"),
        ("give the green cube a push towards the robot", "green cube"),
        ("put the red cube on the red plate", "red cube"),
        ("Pick up the Coke can, then lift it.", "Coke can"),
        ("The toy is done", "toy is done"),
        ("wait", ""),
        ("", ""),
    ],
)
def test_a_step_is_about_the_first_object_it_names(step, name):
    assert named_object(step) == name


def test_a_planner_that_knows_nothing_still_gives_one_read_out_a_picture(model, processor, make_image):
    images = [make_image(0), make_image(1, 64)]
    assert len(read_out(model, processor, images, ["push the red cube", "reach the dot"])) == 2
    assert read_out(model, processor, [], []) == []


def test_what_no_step_names_is_named_by_the_instruction(model, processor, make_image):
    image, task = make_image(0), "push the red cube to the left"
    (step,) = ground(model, processor, [image], f"Your task is {task}. What is the next step?")
    (seen,) = read_out(model, processor, [image], [task])
    assert (named_object(step.text), seen.label) == ("", "red cube")


def test_every_picture_has_an_instruction(model, processor, make_image):
    with pytest.raises(PolicyError, match="2 images and 1 questions"):
        read_out(model, processor, [make_image(0), np.zeros((8, 8, 3), np.uint8)], ["reach the dot"])
