"""Plans and disturbances, without a simulator."""

import numpy as np
import pytest

from st4vla.envs import layout, perturbations, suites
from st4vla.platform.errors import EnvError


def test_the_same_plan_gives_the_same_ids():
    one = [spec.episode_id for spec in suites.plan("seen", ["reach", "push"], 5, seed=1)]
    assert one == [spec.episode_id for spec in suites.plan("seen", ["reach", "push"], 5, seed=1)]
    assert len(set(one)) == 10


def test_plans_of_two_seeds_share_no_scene():
    seeds = [{spec.seed for spec in suites.plan("seen", ["reach"], 50, seed=seed)} for seed in (0, 1)]
    assert not seeds[0] & seeds[1]


def test_training_and_evaluation_seeds_are_two_ranges():
    assert suites.training_seed(999_999_999) < suites.evaluation_seed(0, 0) == 1_000_000_000
    assert suites.evaluation_seed(9_999, 99_999) < 2**31
    with pytest.raises(EnvError, match="1000000000 has no seed"):
        suites.training_seed(1_000_000_000)


def test_disturbed_episodes_follow_their_undisturbed_twins():
    plan = suites.plan("moved_object", ["reach", "sort_three"], 3, seed=0)
    assert len(plan) == 12
    for twin, disturbed in zip(plan[::2], plan[1::2], strict=True):
        assert (twin.task, twin.seed, twin.instruction) == (disturbed.task, disturbed.seed, disturbed.instruction)
        assert (twin.perturbations, disturbed.perturbations) == ((), ("object_moved",))
        assert twin.episode_id != disturbed.episode_id


def test_long_horizon_is_sort_three_whatever_is_asked_for():
    assert {spec.task for spec in suites.plan("long_horizon", ["reach"], 2, seed=0)} == {"sort_three"}


def test_unseen_wording_shows_the_scenes_of_seen_in_other_words():
    for seen, unseen in zip(*(suites.plan(name, ["push"], 5, 0) for name in ("seen", "unseen_wording")), strict=True):
        assert seen.seed == unseen.seed
        assert seen.variant == unseen.variant
        assert seen.instruction != unseen.instruction


def test_unknown_suite_is_named_with_what_there_is():
    with pytest.raises(EnvError, match="'easy'.*seen, unseen_objects"):
        suites.plan("easy", ["reach"], 1, 0)


def test_a_moved_object_goes_six_to_twelve_centimetres_and_stays_clear():
    for seed in range(20):
        scene = layout.draw_scene("reach", "default", seed)
        index, tcp = scene.targets[0], np.array([-0.11, 0.0, 0.20])
        place = perturbations.shifted_position(scene, index, scene.poses[:, :3], tcp, seed)
        assert place is not None
        assert 0.06 <= np.linalg.norm(place[:2] - scene.poses[index, :2]) <= 0.12
        others = np.delete(scene.poses[:, :2], index, axis=0)
        assert np.linalg.norm(others - place[:2], axis=1).min() > 0.05


def test_a_changed_instruction_is_about_another_solid():
    for seed in range(20):
        scene = layout.draw_scene("put_on", "default", seed)
        changed = perturbations.retargeted(scene, (), seed)
        assert changed.targets != scene.targets
        assert changed.things[changed.targets[0]].shape.kind == "solid"
        assert changed.destinations == scene.destinations


def test_a_changed_sorting_exchanges_two_containers_and_spares_what_is_done():
    scene = layout.draw_scene("sort_three", "default", 5)
    changed = perturbations.retargeted(scene, (True, False, False), 5)
    assert changed.destinations == (scene.destinations[0], scene.destinations[2], scene.destinations[1])
