"""An asset tree is looked at file by file, and a suite is disabled by what it lacks."""

from pathlib import Path

import pytest

from st4vla.platform.assets.manifest import AssetFile, asset_files
from st4vla.platform.assets.needs import NEEDS, files_for, readiness, suites_of
from st4vla.platform.assets.tree import AssetTree, find_tree, git_id, standing, survey
from st4vla.platform.cli import main
from st4vla.platform.errors import ConfigError

STAGE = "tasks/bridge_v2_real2sim_dataset/stages/bridge_table_1_v1.glb"
EGGPLANT = "tasks/bridge_v2_real2sim_dataset/custom/models/eggplant"


@pytest.fixture
def tree(tmp_path: Path) -> AssetTree:
    return AssetTree(tmp_path)


def put(tree: AssetTree, place: str, content: bytes) -> AssetFile:
    """Lay a file in the tree and describe it."""
    path = tree.path(place)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return AssetFile(place, f"owner/name/commit/{place}", git_id(path), len(content))


def test_the_git_id_is_the_one_git_gives(tmp_path: Path) -> None:
    (tmp_path / "hello").write_bytes(b"hello\n")
    assert git_id(tmp_path / "hello") == "ce013625030ba8dba906f756967f9e9ca394464a"


def test_every_file_of_the_benchmark_is_known_by_a_git_id_at_a_pinned_commit() -> None:
    files = asset_files("simplerenv")
    assert len(files) == 420
    assert len({file.place for file in files}) == 420
    assert all(len(file.git_id) == 40 and len(file.address.split("/")[2]) == 40 for file in files)
    assert sum(file.size is None for file in files) == 16


def test_every_file_of_the_manifest_but_spare_ones_is_needed_by_a_suite() -> None:
    needed = {file.place for file in files_for(suites_of(()))}
    spare = [file.place for file in asset_files("simplerenv") if file.place not in needed]
    assert [place for place in spare if "/stages/" in place] == []
    assert len(needed) > 300


def test_a_file_is_ok_damaged_or_absent(tree: AssetTree) -> None:
    file = put(tree, "robots/a.urdf", b"right")
    assert standing(tree, file) == "ok"
    tree.path(file.place).write_bytes(b"wrong")
    assert standing(tree, file) == "damaged"
    tree.path(file.place).unlink()
    assert standing(tree, file) == "absent"


def test_a_stand_in_serves_for_what_substitutes_txt_names_but_never_for_a_collision_mesh(tree: AssetTree) -> None:
    stage = put(tree, STAGE, b"the original")
    tree.path(STAGE).write_bytes(b"a box")
    picture, mesh = (
        AssetFile(f"{EGGPLANT}/textured.dae", "", "0" * 40),
        AssetFile(f"{EGGPLANT}/collision.obj", "", "1" * 40),
    )
    put(tree, f"{EGGPLANT}/textured.glb", b"a purple egg")
    assert survey(tree, [stage, picture]) == {STAGE: "damaged", picture.place: "absent"}
    names = "Stand-ins\nelsewhere/stages/bridge_table_1_v1.glb\nelsewhere/models/eggplant/textured.glb (scaled)\n"
    (tree.root / "SUBSTITUTES.txt").write_text(names)
    standings = survey(tree, [stage, picture, mesh])
    assert list(standings.values()) == ["stand-in", "stand-in", "absent"]


def test_a_missing_stage_disables_the_tasks_that_show_it_and_no_others() -> None:
    standings = dict.fromkeys((file.place for file in asset_files("simplerenv")), "ok")
    standings["tasks/google_real2sim_dataset/stages/modern_office_no_roof.glb"] = "absent"
    rows = readiness(standings, tuple(NEEDS))  # pyright: ignore[reportArgumentType]
    assert [(row.suite, row.task) for row in rows if row.lacking] == [
        ("simplerenv_google_va", "drawers and apple, other rooms")
    ]


def test_no_name_means_all_suites_and_an_unknown_one_is_refused() -> None:
    assert suites_of(["simplerenv"]) == suites_of([]) == tuple(NEEDS)
    with pytest.raises(ConfigError, match="'bridge' is no suite with assets"):
        suites_of(["bridge"])


def test_the_tree_is_the_folder_named_else_that_of_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ST4VLA_ASSETS", raising=False)
    monkeypatch.setenv("MS_ASSET_DIR", str(tmp_path))
    assert find_tree().root == tmp_path
    assert find_tree(tmp_path / "other").root == tmp_path / "other"
    (tmp_path / "data").mkdir()
    assert find_tree(tmp_path / "data").root == tmp_path
    monkeypatch.setenv("ST4VLA_ASSETS", str(tmp_path / "nowhere"))
    with pytest.raises(ConfigError, match="ST4VLA_ASSETS is .*nowhere, which is no folder"):
        find_tree()


def test_the_check_command_fails_for_an_empty_tree_and_names_the_command_that_mends_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["assets", "check", "simplerenv_widowx", "--dir", str(tmp_path)]) == 1
    assert "st4vla assets fetch simplerenv_widowx" in capsys.readouterr().out


def test_the_check_command_refuses_a_suite_it_does_not_know(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["assets", "check", "widow"]) == 2
    assert "'widow' is no suite with assets" in capsys.readouterr().err
