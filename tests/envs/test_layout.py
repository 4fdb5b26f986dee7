"""Scenes, names and words, without a simulator."""

import re

import numpy as np
import pytest

from st4vla.envs import instructions, layout, objects
from st4vla.platform.errors import EnvError


def test_library_has_24_solids_of_which_6_are_held_out_and_8_containers():
    assert (len(objects.SOLIDS), len(objects.HELD_OUT_SOLIDS), len(objects.CONTAINERS)) == (24, 6, 8)


def test_every_held_out_colour_and_form_is_seen_in_another_combination():
    for thing in objects.HELD_OUT_SOLIDS:
        assert any(other.colour == thing.colour for other in objects.SEEN_SOLIDS)
        assert any(other.form == thing.form for other in objects.SEEN_SOLIDS)


@pytest.mark.parametrize("task", layout.TASKS)
def test_same_seed_draws_the_same_scene_and_another_seed_another(task: str):
    one, same, other = (layout.draw_scene(task, "default", seed) for seed in (3, 3, 4))
    assert one.things == same.things
    np.testing.assert_array_equal(one.poses, same.poses)
    assert one.things != other.things or not np.array_equal(one.poses, other.poses)


@pytest.mark.parametrize("task", layout.TASKS)
def test_forty_scenes_keep_things_apart_named_apart_and_in_the_workspace(task: str):
    for seed in range(40):
        scene = layout.draw_scene(task, "default", seed)
        assert len(scene.things) == (6 if task == "sort_three" else 3)
        assert len(set(scene.things)) == len(scene.things)
        radii = np.array([thing.shape.radius for thing in scene.things])
        gaps = np.linalg.norm(scene.poses[:, None, :2] - scene.poses[None, :, :2], axis=-1) - radii[:, None] - radii
        bins = np.array([thing.shape.kind == "container" for thing in scene.things])
        both_containers = bins[:, None] & bins[None]
        assert np.all(gaps[np.triu(~both_containers, 1)] >= (0.0 if task == "sort_three" else layout.CLEARANCE))
        assert np.all(np.abs(scene.poses[:, 1]) <= 0.19)
        assert np.all(np.abs(scene.poses[:, 0]) <= 0.14)


@pytest.mark.parametrize("task", layout.TASKS)
def test_training_scenes_never_show_a_held_out_object(task: str):
    names = {thing.name for seed in range(60) for thing in layout.draw_scene(task, "default", seed).things}
    assert not names & set(objects.HELD_OUT)


@pytest.mark.parametrize("task", layout.TASKS)
def test_unseen_scenes_are_about_held_out_objects(task: str):
    for seed in range(20):
        scene = layout.draw_scene(task, "unseen_objects", seed)
        assert set(scene.names(scene.targets)) <= set(objects.HELD_OUT)


def test_sorting_asks_for_containers_of_the_objects_colours():
    scene = layout.draw_scene("sort_three", "default", 11)
    for thing, place in zip(scene.names(scene.targets), scene.names(scene.destinations), strict=True):
        assert thing.split()[0] == place.split()[0]


def test_unknown_task_and_variant_are_named_with_what_there_is():
    with pytest.raises(EnvError, match="'fly'.*reach, push, pick_up, put_on, sort_three"):
        layout.draw_scene("fly", "default", 0)
    with pytest.raises(EnvError, match="'glass'.*default, unseen_objects"):
        layout.draw_scene("reach", "glass", 0)


@pytest.mark.parametrize("task", layout.TASKS)
def test_each_task_has_six_seen_wordings_and_three_of_each_other_kind_and_none_is_both(task: layout.TaskName):
    forms = instructions.PARAPHRASES[task]
    assert len(set(forms["seen"])) >= 6
    assert len(set(forms["held_out"])) >= 3 and len(set(forms["new_words"])) >= 3
    assert len({sentence for kind in forms.values() for sentence in kind}) == sum(map(len, forms.values()))


def test_held_out_wordings_are_of_words_that_training_uses_and_new_words_are_not():
    kinds = {
        kind: [words_of(sentence) for forms in instructions.PARAPHRASES.values() for sentence in forms[kind]]
        for kind in ("seen", "held_out", "new_words")
    }
    known = set().union(*kinds["seen"])
    assert not set().union(*kinds["held_out"]) - known
    assert all(words - known for words in kinds["new_words"])


def words_of(sentence: str) -> set[str]:
    return set(re.findall(r"[a-z]+", re.sub(r"\{\w+\}", " ", sentence)))


def test_instruction_names_object_side_and_container():
    assert "red cube" in instructions.instruction("reach", ("red cube",), 1)
    assert "to the left" in instructions.instruction("push", ("red cube", "left"), 1)
    assert "on the blue plate" in instructions.pair_list(("red cube", "blue plate"))
    assert instructions.pair_list(("red cube", "blue bin", "cyan bar", "red plate")) == (
        "the red cube in the blue bin and the cyan bar on the red plate"
    )


def test_a_mapping_other_than_by_colour_is_always_spelt_out():
    names = ("red cube", "blue bin", "blue bar", "red bin", "green cube", "green bin")
    for seed in range(20):
        assert "the red cube in the blue bin" in instructions.instruction("sort_three", names, seed)


def test_vocabulary_holds_every_word_of_every_instruction():
    known = set(instructions.vocabulary()) | set(objects.vocabulary())
    for task in layout.TASKS:
        for seed in range(30):
            scene = layout.draw_scene(task, "unseen_objects" if seed % 2 else "default", seed)
            for wording in ("seen", "held_out", "new_words"):
                text = instructions.instruction(task, instructions.names_of(scene), seed, wording)
                assert set(re.findall(r"[a-z]+", text)) <= known
