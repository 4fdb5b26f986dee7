"""Say which files each task of a benchmark's suites needs, by patterns of places."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from st4vla.platform.assets.manifest import AssetFile, asset_files
from st4vla.platform.assets.tree import Standing
from st4vla.platform.errors import ConfigError

_BRIDGE = "tasks/bridge_v2_real2sim_dataset/"
_GOOGLE = "tasks/google_real2sim_dataset/"


def _bridge(models: str, stage: str, photo: str) -> str:
    scene = rf"custom/models/({models})/|stages/{stage}\.glb|real_inpainting/{photo}\.png"
    return rf"robots/widowx/|{_BRIDGE}(custom/info_|{scene})"


def _google(rest: str, recoloured: bool) -> str:
    urdf = "google_robot_meta_sim_fix_wheel_fix_fingertip"
    robot = r"robots/googlerobot/" if recoloured else rf"robots/googlerobot/(3obj/|coarse_meshes/|{urdf}\.urdf)"
    return rf"{robot}|{_GOOGLE}(custom/info_|{rest})"


def _models(names: str) -> str:
    return rf"custom/models/({names})/"


_CANS = _models("opened_coke_can")
_MORE = _models(
    "opened_pepsi_can|apple|sponge|orange|opened_7up_can|opened_sprite_can|opened_fanta_can|"
    "bridge_spoon_generated_modified"
)
_NEAR = _models("(baked_)?opened_(7up|pepsi|coke|redbull)_can|(baked_)?(apple|sponge)|orange|blue_plastic_bottle")
_TABLE, _ROOM = r"stages/google_pick_coke_can_1_v4\.glb", r"stages/frl_apartment_stage_simple\.glb"
_BACKGROUNDS = r"stages/google_pick_coke_can_1_v4_alt_background(_2)?\.glb"
_TABLES = r"stages/Baked_sc1_staging_objaverse_cabinet[12]_h870\.glb"
_ROOMS = r"stages/modern_(bedroom|office)_no_roof\.glb"
_PHOTO = r"real_inpainting/google_{}_real_eval_1\.png"
_DRAWER_PHOTOS = r"real_inpainting/open_drawer_"

# {suite: {task, or group of variants of it: pattern of the places it needs}}
NEEDS: Mapping[str, Mapping[str, str]] = {
    "simplerenv_widowx": {
        "spoon on towel": _bridge(
            "bridge_spoon_generated_modified|table_cloth_generated_shorter", "bridge_table_1_v1", "bridge_real_eval_1"
        ),
        "carrot on plate": _bridge(
            "bridge_carrot_generated_modified|bridge_plate_objaverse_larger", "bridge_table_1_v1", "bridge_real_eval_1"
        ),
        "stack cube": _bridge("baked_(green|yellow)_cube_3cm", "bridge_table_1_v1", "bridge_real_eval_1"),
        "eggplant in basket": _bridge("eggplant|sink|dummy_sink_target_plane", "bridge_table_1_v2", "bridge_sink"),
    },
    "simplerenv_google_vm": {
        "pick coke can": _google(f"{_CANS}|{_TABLE}|{_PHOTO.format('coke_can')}", True),
        "move near": _google(f"{_NEAR}|{_TABLE}|{_PHOTO.format('move_near')}", True),
        "open and close drawer": _google(rf"custom/mk_station_recolor\.urdf|{_DRAWER_PHOTOS}", True),
        "place apple in drawer": _google(
            rf"custom/mk_station_recolor\.urdf|{_DRAWER_PHOTOS}[abc]0|{_models('baked_apple_v2')}", True
        ),
    },
    "simplerenv_google_va": {
        "pick coke can": _google(f"{_CANS}|{_MORE}|{_TABLE}", False),
        "pick coke can, other backgrounds": _google(f"{_CANS}|{_BACKGROUNDS}", False),
        "pick coke can, other tables": _google(f"{_CANS}|{_TABLES}", False),
        "move near": _google(f"{_NEAR}|{_TABLE}", False),
        "move near, other backgrounds": _google(f"{_NEAR}|{_BACKGROUNDS}", False),
        "move near, other tables": _google(f"{_NEAR}|{_TABLES}", False),
        "drawers and apple": _google(
            rf"custom/mk_station[23]?\.urdf|custom/models/stone|{_ROOM}|{_models('apple')}", False
        ),
        "drawers and apple, other rooms": _google(rf"custom/mk_station\.urdf|{_ROOMS}|{_models('apple')}", False),
    },
    "simplerenv_google_va_cameras": {
        "pick coke can": _google(f"{_CANS}|{_TABLE}", False),
        "move near": _google(f"{_NEAR}|{_TABLE}", False),
    },
}


@dataclass(frozen=True)
class Readiness:
    """How one task stands: the places it lacks, and those that a stand-in serves."""

    suite: str
    task: str
    lacking: tuple[str, ...]
    stood_in: tuple[str, ...]


def suites_of(names: Sequence[str]) -> tuple[str, ...]:
    """Give the suites that were asked for, all of them for none or for the benchmark's own name.

    Raises:
        ConfigError: a name is no suite that needs assets.
    """
    if not names or list(names) == ["simplerenv"]:
        return tuple(NEEDS)
    unknown = [name for name in names if name not in NEEDS]
    if unknown:
        raise ConfigError(f"{unknown[0]!r} is no suite with assets; expected simplerenv or one of {', '.join(NEEDS)}")
    return tuple(names)


def readiness(standings: Mapping[str, Standing], suites: Sequence[str]) -> list[Readiness]:
    """Say how every task of these suites stands, given how every file does."""
    rows = []
    for suite in suites:
        for task, pattern in NEEDS[suite].items():
            mine = {place: how for place, how in standings.items() if re.match(pattern, place)}
            lacking = tuple(place for place, how in mine.items() if how in ("absent", "damaged"))
            stood_in = tuple(place for place, how in mine.items() if how == "stand-in")
            rows.append(Readiness(suite, task, lacking, stood_in))
    return rows


def files_for(suites: Sequence[str], benchmark: str = "simplerenv") -> list[AssetFile]:
    """Give the files that these suites need."""
    pattern = "|".join(need for suite in suites for need in NEEDS[suite].values())
    return [file for file in asset_files(benchmark) if re.match(pattern, file.place)]
