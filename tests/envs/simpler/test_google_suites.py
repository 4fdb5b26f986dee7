"""The official protocol as plans: how many episodes, which are which, and how they read in the original's words."""

from collections import Counter
from pathlib import Path

import pytest

from st4vla.envs.simpler import google_suites, suites
from st4vla.envs.simpler.assets import AssetTree
from st4vla.envs.simpler.setup import Setup
from st4vla.platform.contracts import EpisodeSpec
from st4vla.platform.errors import EnvError


def test_visual_matching_has_864_episodes_all_different():
    plan = suites.plan("simplerenv_google_vm")
    assert len({spec.episode_id for spec in plan}) == 864
    counts = Counter(spec.task for spec in plan)
    assert counts == {
        "pick_coke_can": 300,
        "move_near": 240,
        "open_drawer": 108,
        "close_drawer": 108,
        "place_apple": 108,
    }


def test_variant_aggregation_has_the_scored_variants_only():
    plan = suites.plan("simplerenv_google_va")
    counts = Counter(spec.task for spec in plan)
    assert counts == {
        "pick_coke_can": 675,
        "move_near": 480,
        "open_drawer": 189,
        "close_drawer": 189,
        "place_apple": 189,
    }
    assert len({spec.variant for spec in plan if spec.task == "pick_coke_can"}) == 27
    assert len(suites.plan("simplerenv_google_va_cameras")) == 270


def test_widowx_has_four_tasks_of_24_episodes():
    assert Counter(spec.task for spec in suites.plan("simplerenv_widowx")) == {
        "spoon_on_towel": 24,
        "carrot_on_plate": 24,
        "stack_cube": 24,
        "eggplant_in_basket": 24,
    }


def test_the_can_stands_on_the_grid_with_x_as_the_outer_loop():
    spec = EpisodeSpec("simplerenv_google_vm", "pick_coke_can", "standing/tabletop_2", 6, "pick coke can")
    case = suites.case_of(spec)
    assert case.obj["init_xy"] == pytest.approx((-0.2925, 0.09))
    assert case.build["urdf_version"] == "recolor_tabletop_visual_matching_2"
    assert case.build["upright"] is True


def test_a_drawer_episode_has_the_photograph_of_where_the_robot_stands():
    spec = EpisodeSpec("simplerenv_google_vm", "close_drawer", "bottom/plain", 5, "close bottom drawer")
    case = suites.case_of(spec)
    assert case.build["rgb_overlay_path"] == "open_drawer_b2.png"
    assert case.robot["init_xy"] == (0.851, 0.035)


def test_an_apple_episode_goes_through_nine_places_for_each_photograph():
    plan = [spec for spec in suites.plan("simplerenv_google_vm", ("place_apple",)) if spec.variant == "plain"]
    photos = [suites.case_of(spec).build["rgb_overlay_path"] for spec in plan]
    assert photos == ["open_drawer_a0.png"] * 9 + ["open_drawer_b0.png"] * 9 + ["open_drawer_c0.png"] * 9
    assert suites.case_of(plan[10]).obj["init_xy"] == pytest.approx((-0.08, 0.03))


def test_fewer_episodes_are_spread_over_the_variants():
    plan = suites.plan("simplerenv_google_vm", ("move_near",), episodes=4)
    assert [spec.variant for spec in plan] == ["plain", "tabletop_1", "tabletop_2", "cabinet_1"]


def test_variants_are_chosen_by_name_or_by_a_part_of_it():
    chosen = suites.plan("simplerenv_google_va", variants=("base", "top/brighter"))
    assert Counter((spec.task, spec.variant) for spec in chosen if spec.task in ("move_near", "open_drawer")) == {
        ("move_near", "base"): 60,
        **{("open_drawer", name): 9 for name in ("top/base", "middle/base", "bottom/base", "top/brighter")},
    }
    few = suites.plan("simplerenv_google_vm", ("pick_coke_can",), 4, variants=("standing",))
    assert {spec.variant.split("/")[0] for spec in few} == {"standing"} and len(few) == 4


def test_an_unknown_variant_lists_those_there_are():
    with pytest.raises(EnvError, match=r"no variant 'dusk' of move_near.* takes some of base, .*, no_distractor, or"):
        suites.plan("simplerenv_google_va", ("move_near",), variants=("base", "dusk"))


def test_a_plan_that_lacks_files_says_which_variants_need_none_of_them(monkeypatch: pytest.MonkeyPatch):
    def missing(setup: Setup, tree: AssetTree) -> list[str]:
        return ["office.glb"] if "office" in setup.build.arena.stage else []

    monkeypatch.setattr(suites, "missing_assets", missing)
    plan = suites.plan("simplerenv_google_va", ("open_drawer",))
    rest = r"variants=\[base,bedroom,brighter,darker,station_2,station_3\] needs none of them"
    with pytest.raises(EnvError, match=r"office.glb \(27 episodes\).*" + rest):
        suites.check(plan, AssetTree(Path("nowhere")))


def test_training_never_meets_an_evaluated_episode():
    training = suites.training("open_drawer", 3)
    assert training.suite not in suites.SUITES
    places = {tuple(google_suites.case_of(suites.training("open_drawer", i)).robot["init_xy"]) for i in range(20)}
    assert len(places) == 20
    assert not places & set(google_suites.ROOM_GRID)


@pytest.mark.parametrize(
    ("spec", "word"),
    [
        (EpisodeSpec("simplerenv_google_vm", "pick_coke_can", "sideways", 0, ""), "sideways"),
        (EpisodeSpec("simplerenv_google_vm", "fly", "plain", 0, ""), "fly"),
        (EpisodeSpec("simplerenv_google_vm", "move_near", "plain", 60, ""), "0 to 59"),
        (EpisodeSpec("simplerenv_mars", "move_near", "plain", 0, ""), "simplerenv_mars"),
    ],
)
def test_an_unknown_episode_is_refused_by_name(spec: EpisodeSpec, word: str):
    with pytest.raises(EnvError, match=word):
        suites.case_of(spec)


def test_a_plan_that_asks_for_too_much_is_refused():
    with pytest.raises(EnvError, match="240 official episodes"):
        suites.plan("simplerenv_google_vm", ("move_near",), episodes=241)
