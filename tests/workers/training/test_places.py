"""Every folder, file and address that a source names is found by workers that stand in other folders."""

from pathlib import Path

import pytest

from st4vla.platform.data import remote
from st4vla.workers.training.command import read_sources, with_pinned_data

COMMIT = "c0" * 20
REFS = {
    "path": "refs.json",
    "kind": "refcoco",
    "options": {"instances": "in.json", "images": "train2014", "split": "a"},
}


def test_relative_places_in_pictures_options_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (refs, shown) = read_sources([REFS, {**REFS, "options": {"images": "hf:lab/set", "instances": "/in.json"}}])
    assert refs.path == str(tmp_path / "refs.json")
    assert refs.options == {
        "instances": str(tmp_path / "in.json"),
        "images": str(tmp_path / "train2014"),
        "split": "a",
    }
    assert shown.options == {"images": "hf:lab/set", "instances": "/in.json"}


def test_options_of_other_sources_are_their_own() -> None:
    (made,) = read_sources({"kind": "package.scenes.make", "options": {"images": 3}})
    assert made.options == {"images": 3}


def test_addresses_in_pictures_options_are_pinned_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "ask_commit", lambda address: COMMIT)
    refs = {**REFS, "path": "hf:lab/refs", "options": {"images": "hf:lab/set/train2014", "instances": "in.json"}}
    settings = {"data": "hf:lab/arm@main", "grounding_data": [refs], "downloads": str(tmp_path)}
    pinned = with_pinned_data(settings)
    assert pinned["data"] == f"hf:lab/arm@{COMMIT}"
    (asked,) = pinned["grounding_data"]
    assert asked["path"] == f"hf:lab/refs@{COMMIT}"
    assert asked["options"] == {"images": f"hf:lab/set@{COMMIT}/train2014", "instances": "in.json"}
