"""Find the original's assets in a tree laid out as ManiSkill's MS_ASSET_DIR, and say what is missing; builds nothing.

ROOT/data/robots/{googlerobot,widowx}/*.urdf
ROOT/data/tasks/{google,bridge_v2}_real2sim_dataset/{custom/*.json,custom/models/,real_inpainting/,stages/}
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from st4vla.envs.simpler.setup import AssetFamily, Setup, Thing
from st4vla.platform.assets.tree import find_tree as locate_tree
from st4vla.platform.errors import EnvError

FOLDERS: dict[AssetFamily, str] = {"google": "google_real2sim_dataset", "bridge": "bridge_v2_real2sim_dataset"}
GOOGLE_URDF = "googlerobot/google_robot_meta_sim_fix_wheel_fix_fingertip"
VISUALS = ("textured.obj", "textured.dae", "textured.glb")
FETCH = "run `st4vla assets fetch simplerenv`, or name a tree that has it in MS_ASSET_DIR or ST4VLA_ASSETS"


@dataclass(frozen=True)
class AssetTree:
    """An asset tree by its root; paths are given whether or not the file is there."""

    root: Path

    def family(self, family: AssetFamily) -> Path:
        """The folder of one family of tasks."""
        return self.root / "data" / "tasks" / FOLDERS[family]

    def database(self, family: AssetFamily, name: str) -> dict[str, dict[str, Any]]:
        """Read a model database: bounding box, scales and density of each model.

        Raises:
            EnvError: the file is not there.
        """
        return dict(_read_json(self.family(family) / "custom" / name))

    def stage(self, name: str) -> Path:
        """The mesh of a stage, in whichever family has it."""
        return self._first([self.family(family) / "stages" / f"{name}.glb" for family in FOLDERS])

    def overlay(self, name: str) -> Path:
        """The photograph of that file name."""
        return self._first([self.family(family) / "real_inpainting" / name for family in FOLDERS])

    def model(self, family: AssetFamily, model: str) -> Path:
        """The folder of one model."""
        return self._first([self.family(place) / "custom" / "models" / model for place in (family, *FOLDERS)])

    def station(self, name: str) -> Path:
        """The URDF of a chest of drawers."""
        return self.family("google") / "custom" / f"{name}.urdf"

    def robot(self, robot: str, recolouring: str = "") -> Path:
        """The URDF of a robot by the original's name of it."""
        suffix = f"_{recolouring}" if recolouring else ""
        stem = GOOGLE_URDF if robot.startswith("google_robot") else "widowx/wx250s"
        return self.root / "data" / "robots" / f"{stem}{suffix}.urdf"

    def visual(self, family: AssetFamily, model: str) -> Path:
        """The mesh that a model is seen by."""
        return self._first([self.model(family, model) / name for name in VISUALS])

    @staticmethod
    def _first(places: list[Path]) -> Path:
        return next((place for place in places if place.exists()), places[0])


@cache
def _read_json(path: Path) -> Mapping[str, Any]:
    if not path.is_file():
        raise EnvError(f"{path} is not there; {FETCH}.")
    return json.loads(path.read_text())


def find_tree(root: str | Path | None = None) -> AssetTree:
    """Find the asset tree as `st4vla assets` does: the one given, ST4VLA_ASSETS, MS_ASSET_DIR, ManiSkill's default.

    Raises:
        EnvError: a tree was given that is not a folder.
        ConfigError: a variable names one that is not.
    """
    chosen = locate_tree(root).root
    if root and not chosen.is_dir():
        raise EnvError(f"The asset tree {chosen} is not a folder; {FETCH}.")
    return AssetTree(chosen)


def missing_assets(setup: Setup, tree: AssetTree) -> list[str]:
    """List the files that an episode needs and the tree lacks, relative to its root; reads no mesh."""
    build = setup.build
    wanted = [tree.robot(build.robot, build.recolouring)]
    if not build.arena.stage.startswith("dummy"):
        wanted.append(tree.stage(build.arena.stage))
    if build.cabinet is not None:
        wanted.append(tree.station(build.cabinet.station))
    if setup.view.overlay:
        wanted.append(tree.overlay(setup.view.overlay))
    for thing in build.things:
        wanted += _files_of(thing, build.family, tree)
    return [str(path.relative_to(tree.root)) for path in wanted if not path.is_file()]


def _files_of(thing: Thing, family: AssetFamily, tree: AssetTree) -> list[Path]:
    return [tree.model(family, thing.model) / "collision.obj", tree.visual(family, thing.model)]


def check_assets(setup: Setup, tree: AssetTree) -> None:
    """Make sure that an episode's files are there.

    Raises:
        EnvError: one is not; it is named.
    """
    missing = missing_assets(setup, tree)
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise EnvError(f"The asset tree {tree.root} lacks {missing[0]}{more}; {FETCH}.")
