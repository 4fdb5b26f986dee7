"""Pictures with questions are read in the forms others keep them, and what is wrong is named by file, row and key."""

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from st4vla.platform.contracts import GroundingSample, Spatial
from st4vla.platform.data.json_rows import JsonLines
from st4vla.platform.data.picture_formats import open_pictures
from st4vla.platform.data.pictures import PictureQuestions
from st4vla.platform.errors import ConfigError, DataError
from st4vla.platform.train.sources import ReadingConfig, SourceConfig, open_source

RNG = np.random.default_rng(0)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    Image.fromarray(np.full((100, 200, 3), 7, np.uint8)).save(tmp_path / "a.png")
    return tmp_path


def write(path: Path, content: Any) -> Path:
    lines = [json.dumps(row) for row in content] if path.suffix == ".jsonl" else [json.dumps(content)]
    path.write_text("\n".join(lines) + "\n")
    return path


def ask(kind: str, path: Path, index: int = 0, **options: Any) -> GroundingSample:
    return open_pictures(kind, path, options).ask(index, RNG)


def test_a_conversation_is_asked_in_its_own_words_and_coordinates_become_pixels(folder: Path):
    turns = [
        {"from": "human", "value": "<image>\nWhere is the apple?"},
        {"from": "gpt", "value": 'One of 2: {"bbox_2d": [500, 100, 750, 200], "label": "apple 3"}'},
    ]
    rows = write(folder / "chat.jsonl", [{"image": "a.png", "conversations": turns}])
    sample = ask("llava", rows, coordinates="thousandths")
    assert (sample.kind, sample.label) == ("words", "Where is the apple?")
    assert sample.answer.label == 'One of 2: {"bbox_2d": [100, 10, 150, 20], "label": "apple 3"}'
    assert sample.image.shape == (100, 200, 3) and sample.image.dtype == np.uint8


def test_both_spellings_of_the_picture_are_read_and_two_pictures_are_not(folder: Path):
    turns = [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}]
    one = {"images": ["a.png"], "conversations": turns}
    rows = write(folder / "chat.json", [one, {**one, "images": ["a.png", "a.png"]}])
    assert ask("llava", rows).answer == Spatial(label="A")
    with pytest.raises(DataError, match=r"chat.json row 1: 'image' or 'images' is .* expected one file name"):
        ask("llava", rows, 1)


def test_points_on_a_named_thing(folder: Path):
    rows = write(
        folder / "points.jsonl", [{"image": "a.png", "label": "cup", "points": [[0.5, 0.5], {"x": 1, "y": 0}]}]
    )
    sample = ask("points", rows, coordinates="unit")
    assert (sample.kind, sample.label, sample.answer.points) == ("point", "cup", ((100.0, 50.0), (200.0, 0.0)))


def test_a_picture_with_more_than_ten_points_is_not_asked_about(folder: Path):
    rows = write(folder / "points.jsonl", [{"image": "a.png", "label": "pea", "points": [[1, 1]] * 11}])
    with pytest.raises(DataError, match="row 0 asks nothing"):
        ask("points", rows)


COCO = {
    "images": [{"id": 1, "file_name": "a.png"}, {"id": 2, "file_name": "b.png"}],
    "categories": [{"id": 5, "name": "dog"}, {"id": 6, "name": "cat"}],
    "annotations": [
        {"id": 10, "image_id": 1, "category_id": 5, "bbox": [10, 20, 30, 40]},
        {"id": 11, "image_id": 1, "category_id": 6, "bbox": [0, 0, 5, 5]},
        {"id": 12, "image_id": 1, "category_id": 6, "bbox": [9, 9, 5, 5]},
    ],
}


def test_coco_asks_for_what_a_picture_shows_once(folder: Path):
    pictures = open_pictures("coco", write(folder / "instances.json", COCO), {})
    assert len(pictures) == 1
    sample = pictures.ask(0, RNG)
    assert (sample.kind, sample.label, sample.answer.box) == ("box", "dog", (10.0, 20.0, 40.0, 60.0))


def test_a_box_outside_the_picture_is_named(folder: Path):
    outside = COCO | {"annotations": [{"id": 10, "image_id": 1, "category_id": 5, "bbox": [190, 20, 30, 40]}]}
    with pytest.raises(DataError, match=r"images row 0: 'bbox' of annotation 10 has the box .* picture of 200x100"):
        ask("coco", write(folder / "instances.json", outside))


def test_a_box_outside_the_picture_in_an_answer_is_named(folder: Path):
    turns = [
        {"from": "human", "value": "Where is the apple?"},
        {"from": "gpt", "value": "<box>[[10, 10, 9999, 20]]</box>"},
    ]
    rows = write(folder / "rows.json", [{"image": "a.png", "conversations": turns}])
    with pytest.raises(DataError, match=r"row 0: 'conversations' has the point \[9999.0, 20.0\] .* of 200x100"):
        ask("llava", rows)


@pytest.mark.parametrize("form", ["refs.p", "refs.json"])
def test_refcoco_asks_by_each_sentence_of_its_split(folder: Path, form: str):
    refs = [
        {"ann_id": 10, "split": "train", "sentences": [{"sent": "the brown dog"}]},
        {"ann_id": 11, "split": "val", "sentences": [{"sent": "a cat"}]},
    ]
    path = folder / form
    path.write_bytes(pickle.dumps(refs)) if form == "refs.p" else write(path, refs)
    instances = write(folder / "instances.json", COCO)
    sample = ask("refcoco", path, instances=str(instances))
    assert (sample.kind, sample.label, sample.answer.box) == ("box", "the brown dog", (10.0, 20.0, 40.0, 60.0))
    with pytest.raises(ConfigError, match=r"data\.options\.instances is missing"):
        ask("refcoco", path)


def test_a_pickle_that_wants_to_run_code_is_refused(folder: Path):
    (folder / "refs.p").write_bytes(pickle.dumps([print]))
    with pytest.raises(DataError, match=r"wants builtins\.print"):
        ask("refcoco", folder / "refs.p", instances=str(write(folder / "instances.json", COCO)))


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ({"image": "a.png"}, r"row 0 has no 'conversations'; it has 'image'"),
        ({"image": "a.png", "conversations": "x"}, r"row 0: 'conversations' is 'x'; expected list"),
        ({"image": "none.png", "conversations": []}, r"row 0: the picture .*none\.png cannot be read"),
    ],
)
def test_a_broken_row_is_named(folder: Path, row: Any, complaint: str):
    with pytest.raises(DataError, match=complaint):
        ask("llava", write(folder / "chat.jsonl", [row]))


def test_a_picture_cut_short_is_named(folder: Path):
    whole = (folder / "a.png").read_bytes()
    (folder / "a.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"a\.png cannot be read"):
        ask("points", write(folder / "p.jsonl", [{"image": "a.png", "label": "x", "points": [[1, 1]]}]))


def test_lines_are_found_again_without_being_held(tmp_path: Path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": 1}\n\n{"a": "\\u00e9"}\n{"a": 3')
    rows = JsonLines(path)
    assert len(rows) == 3 and rows[1]["a"] == "\u00e9" and rows[0:2][0] == {"a": 1}
    with pytest.raises(DataError, match="row 2 is not JSON"):
        rows[2]


def test_an_unknown_option_or_convention_is_refused(folder: Path):
    rows = write(folder / "p.jsonl", [{"image": "a.png", "label": "x", "points": [[1, 1]]}])
    with pytest.raises(ConfigError, match="known are coordinates, images"):
        open_pictures("points", rows, {"scale": 1})
    with pytest.raises(ConfigError, match="choose one of pixels, thousandths, unit"):
        open_pictures("points", rows, {"coordinates": "percent"})


def test_pictures_are_a_source_of_questions_with_a_share_held_out(folder: Path):
    rows = write(folder / "p.jsonl", [{"image": "a.png", "label": str(n), "points": [[n, 1]]} for n in range(10)])
    source = open_source(SourceConfig(str(rows), "points"), ReadingConfig(("x",), 8, "arm", held_out_share=0.2))
    assert len(source.grounding()) == 8
    assert [one.label for one in source.held_out_grounding(5)] == ["8", "9"]
    assert source.digest == open_pictures("points", rows, {}).digest
    with pytest.raises(DataError, match="pictures without actions"):
        source.robot()
    assert isinstance(source.grounding(), PictureQuestions)
