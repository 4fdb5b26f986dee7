"""Write platform/assets/simplerenv.json from git clones of the public sources.

    python scripts/asset_manifest.py FOLDER

FOLDER holds one clone per source, named owner+name. A file's id in git fixes its content even where a partial clone
lacks it; size and SHA-256 are added where it does not.
"""

import argparse
import hashlib
import json
import re
import subprocess
from pathlib import Path

OUT = Path(__file__).resolve().parent.parent / "platform" / "assets" / "simplerenv.json"
ROBOTS = {
    "robots/widowx": ("haosulab/ManiSkill-WidowX250S", "6a12bb745d964aab9fc897f0999cad53aa29000c"),
    "robots/googlerobot": ("haosulab/ManiSkill-GoogleRobot", "3aa86c751ba508acb1272f73dbbd827cd25337b0"),
}
TASKS = ("simpler-env/ManiSkill2_real2sim", "ef7a4d4fdf4b69f2c2154db5b15b9ac8dfe10682")
BRIDGE, GOOGLE = "tasks/bridge_v2_real2sim_dataset", "tasks/google_real2sim_dataset"
BRIDGE_MODELS = (
    "baked_green_cube_3cm baked_yellow_cube_3cm green_cube_3cm yellow_cube_3cm bridge_carrot_generated_modified "
    "bridge_plate_objaverse_larger bridge_spoon_generated_modified table_cloth_generated_shorter eggplant sink "
    "dummy_sink_target_plane"
).split()
GOOGLE_MODELS = (
    "7up_can apple baked_apple baked_apple_v2 baked_blue_plastic_bottle_v2 baked_opened_7up_can "
    "baked_opened_7up_can_v2 baked_opened_coke_can baked_opened_coke_can_v2 baked_opened_pepsi_can "
    "baked_opened_pepsi_can_v2 baked_opened_redbull_can baked_opened_redbull_can_v2 baked_orange_v2 baked_sponge "
    "baked_sponge_v2 blue_plastic_bottle bridge_carrot_generated_modified bridge_spoon_generated_modified coke_can "
    "eggplant fanta_can green_cube_3cm opened_7up_can opened_coke_can opened_fanta_can opened_pepsi_can "
    "opened_redbull_can opened_sprite_can orange pepsi_can redbull_can sponge sprite_can yellow_cube_3cm"
).split()
SPARE = re.compile(r"textured[._](bkup|cand1|toobright|baked|vis)|/(manual|old_not_very_good)/|remeshed|README\.md$")
BRIDGE_FILES = (
    r"custom/info_bridge_custom\w*\.json|stages/bridge_table_1_v[12]\.glb|"
    r"real_inpainting/bridge_(real_eval_[12]|sink)\.png"
)
GOOGLE_FILES = (
    r"custom/info_pick_custom\w*\.json|custom/mk_station\w*\.urdf|custom/models/stone_tabletop\.glb|"
    r"real_inpainting/(google_coke_can_real_eval_1|google_move_near_real_eval_1|open_drawer_\w\d)\.png|"
    r"stages/(frl_apartment_stage_simple|google_pick_coke_can_1_v4(_alt_background(_2)?)?|"
    r"Baked_sc1_staging_objaverse_cabinet[12]_h870|modern_(bedroom|office)_no_roof)\.glb"
)


def main() -> None:
    """Read the command line and write the manifest."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("clones", type=Path)
    clones = parser.parse_args().clones
    sources = []
    for folder, (repository, commit) in ROBOTS.items():
        pairs = [(f"{folder}/{name}", name) for name in listed(clones, repository, commit) if not SPARE.search(name)]
        sources.append(source(repository, commit, pairs, clones))
    sources.append(source(*TASKS, task_pairs(clones), clones))
    text = json.dumps({"sources": sources}, indent=1)
    OUT.write_text(re.sub(r"\[\s+([^\[\]{}]+?)\s+\]", lambda row: "[" + " ".join(row[1].split()) + "]", text) + "\n")
    print(f"{sum(len(entry['files']) for entry in sources)} files in {OUT}")


def task_pairs(clones: Path) -> list[tuple[str, str]]:
    """Give (place in the tree, path in the source) of every file the tasks need."""
    pairs = []
    for path in listed(clones, *TASKS):
        place = path.removeprefix("data/").replace("hab2_bench_assets/", "", 1)
        model = re.match(r"custom/models/(\w+)/(?!$)", place)
        if not path.startswith("data/") or SPARE.search(place) or place.endswith("collision.mtl"):
            continue
        for folder, models, wanted in ((BRIDGE, BRIDGE_MODELS, BRIDGE_FILES), (GOOGLE, GOOGLE_MODELS, GOOGLE_FILES)):
            if model[1] in models if model else re.fullmatch(wanted, place):
                pairs.append((f"{folder}/{place}", path))
    return pairs


def listed(clones: Path, repository: str, commit: str) -> dict[str, str]:
    """Give every path of a commit with its git id."""
    text = git(clones, repository, "ls-tree", "-r", commit).stdout.decode()
    return {line.split("\t")[1]: line.split()[2] for line in text.splitlines()}


def git(clones: Path, repository: str, *words: str) -> subprocess.CompletedProcess[bytes]:
    """Run git in a source's clone."""
    return subprocess.run(["git", "-C", str(clones / repository.replace("/", "+")), *words], capture_output=True)


def source(repository: str, commit: str, pairs: list[tuple[str, str]], clones: Path) -> dict:
    """Describe one source: rows of place, path there, git id, size in bytes and SHA-256 (null where unknown)."""
    ids = listed(clones, repository, commit)
    rows = [[place, path, ids[path], *measured(clones, repository, ids[path])] for place, path in pairs]
    return {"repository": repository, "commit": commit, "files": sorted(rows)}


def measured(clones: Path, repository: str, git_id: str) -> list:
    """Give the size and the SHA-256 of a content the clone has."""
    found = git(clones, repository, "cat-file", "blob", git_id)
    return [None, None] if found.returncode else [len(found.stdout), hashlib.sha256(found.stdout).hexdigest()]


if __name__ == "__main__":
    main()
