"""Annotations become questions with the right answers, and drawing them is decided by the generator alone."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from st4vla.platform.contracts import FrameAnnotation
from st4vla.platform.data import annotations
from st4vla.platform.data.grounding import GroundingConfig, choose, questions
from st4vla.platform.data.lerobot_reader import open_dataset
from st4vla.platform.data.sources import ActionSource, GroundingSource, split_episodes
from st4vla.platform.errors import ConfigError, DataError

NOTE = FrameAnnotation(
    boxes={"red cube": (1, 2, 5, 6), "blue bowl": (7, 8, 9, 12)},
    points={"red cube": (3, 4)},
    target="red cube",
    destination="",
    trace=((0, 0), (3, 4)),
    subgoal="grasp the red cube",
    mask=np.array([[0, 1], [2, 0]], np.int8),
)
IMAGE = np.zeros((8, 8, 3), np.uint8)


def test_one_frame_answers_six_questions() -> None:
    asked = questions(IMAGE, NOTE, "pick up the red cube")
    assert [(one.kind, one.label) for one in asked] == [
        ("box", "red cube"),
        ("box", "blue bowl"),
        ("point", "red cube"),
        ("target", "pick up the red cube"),
        ("trace", "pick up the red cube"),
        ("subgoal", "pick up the red cube"),
    ]
    assert asked[1].answer.box == (7, 8, 9, 12)
    assert asked[2].answer.points == ((3, 4),) and asked[2].region == (1, 2, 5, 6)
    assert asked[3].answer.points == ((3, 4),) and asked[3].answer.label == "red cube"
    assert asked[4].answer.trajectory == ((0, 0), (3, 4))
    assert asked[5].answer.label == "grasp the red cube"


def test_a_target_says_where_it_should_go() -> None:
    asked = questions(IMAGE, dataclasses.replace(NOTE, destination="blue bowl"), "put the red cube in the blue bowl")
    assert [one.destination for one in asked] == ["", "", "", "blue bowl", "", ""]


def test_dense_labels_name_the_objects_in_the_order_of_the_boxes() -> None:
    one = questions(IMAGE, NOTE, "pick up the red cube")[0]
    assert one.dense_labels is not None and one.dense_labels.tolist() == [[0, 1], [2, 0]]
    assert one.dense_names == ("red cube", "blue bowl")


def test_only_wanted_kinds_are_drawn_and_equal_generators_draw_alike() -> None:
    asked = questions(IMAGE, NOTE, "pick up the red cube")
    config = GroundingConfig({"box": 1, "point": 3})
    drawn = [choose(asked, config, np.random.default_rng(seed)) for seed in range(400)]
    kinds = [one.kind for one in drawn if one is not None]
    assert set(kinds) == {"box", "point"} and kinds.count("point") / 400 == pytest.approx(0.75, abs=0.06)
    assert choose(asked, config, np.random.default_rng(5)) is choose(asked, config, np.random.default_rng(5))


def test_a_frame_without_an_answer_gives_none() -> None:
    blind = FrameAnnotation({}, {}, "", "", (), "")
    assert choose(questions(IMAGE, blind, "pick it up"), GroundingConfig(), np.random.default_rng(0)) is None


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(ConfigError, match="names caption"):
        GroundingConfig({"caption": 1})  # type: ignore[dict-item]


def test_a_dataset_gives_a_question_for_every_annotated_frame(dataset_folder: Path) -> None:
    dataset = open_dataset(dataset_folder)
    assert len(dataset.grounding_samples(0)) == 6
    source = GroundingSource(dataset, GroundingConfig({"point": 1}))
    assert len(source) == 25  # only third_person is annotated
    sample = source.load(17, np.random.default_rng(0))
    assert sample.kind == "point" and sample.answer.points == ((10.0, 12.0),)
    assert sample.image.shape == (32, 32, 3) and sample.dense_names == ("red cube", "blue bowl")


def test_action_samples_come_from_the_chosen_episodes_only(dataset_folder: Path) -> None:
    source = ActionSource(open_dataset(dataset_folder), chunk_length=3, episodes=[1, 4])
    assert len(source) == 10
    last = source.load(9, np.random.default_rng(0))
    assert last.instruction == "put the red cube in bowl 0" and last.is_pad.tolist() == [False, True, True]


def test_episodes_are_split_once_and_for_all() -> None:
    train, held = split_episodes(10, 0.2, seed=0)
    assert len(held) == 2 and sorted(train + held) == list(range(10))
    assert split_episodes(10, 0.2, seed=0) == (train, held)


def test_an_annotation_outside_its_picture_is_named_by_its_key() -> None:
    row = {"box_names": ["red cube"], "boxes": [[1, 2, 9999, 6]], "point_names": [], "points": [], "target": ""}
    row |= {"destination": "", "trace": [], "subgoal": "", "mask": None}
    with pytest.raises(DataError, match=r"part\.parquet row 3: 'boxes', 'red cube' has the box .* picture of 128x96"):
        annotations.checked(row, (128, 96), "part.parquet row 3")
    with pytest.raises(DataError, match=r"part\.parquet row 3: names and places do not match"):
        annotations.checked(row | {"box_names": []}, (128, 96), "part.parquet row 3")
