"""Grounding read out of words: every place of an answer, drawn in pixels of the picture; clear errors."""

from copy import deepcopy

import numpy as np
import pytest
import torch
from PIL import Image

from st4vla.platform.contracts import Spatial
from st4vla.platform.errors import ConfigError, DataError, PolicyError
from st4vla.platform.policy.ground_command import GroundConfig, as_annotation, draw_answer, main, read_image
from st4vla.platform.policy.grounding import ground, read_answer
from st4vla.platform.policy.spatial import CoordinateSpace, SpatialParseError, read_all

PIXELS = CoordinateSpace(100, 100, 100, 100)


@pytest.mark.parametrize(
    ("text", "places"),
    [
        (
            '```json\n[{"bbox_2d": [1, 2, 3, 4], "label": "cup"},\n {"bbox_2d": [5, 6, 7, 8], "label": "mug"}]\n```',
            [Spatial("cup", (1, 2, 3, 4)), Spatial("mug", (5, 6, 7, 8))],
        ),
        (
            '[{"point_2d": [10, 20], "label": "a"}, {"point_2d": [30, 40], "label": "b"}]',
            [Spatial("a", points=((10, 20),)), Spatial("b", points=((30, 40),))],
        ),
        ('[{"bbox_2d": [1, 2, 3, 4], "label": "cup"}, {"bbox_2d": [5, 6', [Spatial("cup", (1, 2, 3, 4))]),
        ("<box>[[1, 2, 3, 4], [5, 6, 7, 8]]</box>", [Spatial("", (1, 2, 3, 4)), Spatial("", (5, 6, 7, 8))]),
        (
            "<ref>cup</ref><box>[[1, 2, 3, 4]]</box> and <ref>mug</ref><point>[[5, 6]]</point>",
            [Spatial("cup", (1, 2, 3, 4)), Spatial("mug", points=((5, 6),))],
        ),
        ("<trace>[[1, 2], [3, 4]]</trace>", [Spatial(trajectory=((1, 2), (3, 4)))]),
        ("It is at [(32, 28), (35, 28)].", [Spatial(points=((32, 28), (35, 28)))]),
        ("The answer is [10, 20, 30, 40].", [Spatial(box=(10, 20, 30, 40))]),
        ("(12, 34)", [Spatial(points=((12, 34),))]),
    ],
)
def test_every_place_of_an_answer_is_read_in_order(text, places):
    assert list(read_all(text, PIXELS)) == places


@pytest.mark.parametrize("text", ["", "no", "{}", '{"bbox_2d": []}', "<box></box>", "[7]", "in 3 steps"])
def test_an_answer_without_places_is_the_typed_error(text):
    with pytest.raises(SpatialParseError):
        read_all(text, PIXELS)


def test_thousandths_come_back_in_pixels_of_a_picture_of_any_size(processor):
    tokens = processor.tokenizer("<box>[[250, 500, 500, 1000]]</box>", add_special_tokens=False)["input_ids"]
    answer = read_answer(processor, tokens, np.zeros((50, 400, 3), np.uint8), None)
    assert answer.spatial == answer.places[0] == Spatial(box=(100, 25, 200, 50))


def test_one_question_is_asked_of_all_images(model, processor, make_image):
    images = [make_image(0), make_image(1, 64)]
    answers = ground(model, processor, images, "Point to the red cube.", most_tokens=4)
    assert len(answers) == 2 and all(isinstance(answer.text, str) for answer in answers)
    assert ground(model, processor, [], "Point to it.") == []


def test_bad_questions_and_images_are_refused_by_name(model, processor, make_image):
    with pytest.raises(PolicyError, match="question is empty"):
        ground(model, processor, [make_image(0)], "  ")
    with pytest.raises(PolicyError, match="2 images and 1 questions"):
        ground(model, processor, [make_image(0), make_image(1)], ["Where?"])
    with pytest.raises(PolicyError, match=r"float64 \[128, 128, 3\]; expected uint8"):
        ground(model, processor, [make_image(0) / 255], "Where?")


def test_weights_that_are_not_numbers_are_refused_before_a_word_is_said(model, processor, make_image):
    broken = deepcopy(model)
    with torch.no_grad():
        broken.planner.vlm.model.language_model.norm.weight[0] = float("nan")
    with pytest.raises(PolicyError, match="not finite"):
        ground(broken, processor, [make_image(0)], "Where?")


def test_places_are_drawn_where_they_are_on_an_enlarged_picture(tmp_path):
    places = [Spatial("cup", (20, 20, 60, 60)), Spatial("", points=((80, 90), (100, 100)))]
    written = draw_answer(np.zeros((128, 128, 3), np.uint8), places, tmp_path / "deep" / "out.png")
    drawn = np.asarray(Image.open(written))
    assert drawn.shape == (384, 384, 3)
    assert drawn[64:180, 60].any(axis=-1).all() and drawn[270, 240].any() and not drawn[350, 20].any()
    assert list(as_annotation(places).boxes) == ["cup", "point", "point 2"]


def test_the_packaged_base_answers_on_the_command_line(tmp_path, make_image, capsys):
    Image.fromarray(make_image(3)).save(tmp_path / "seen.png")
    given = {"image": str(tmp_path / "seen.png"), "question": "red cube", "kind": "point"}
    main({**given, "out": str(tmp_path / "drawn.png"), "checkpoint": None, "device": "cpu"})
    said = capsys.readouterr().out
    assert (tmp_path / "drawn.png").is_file() and "said" in said and "drawn.png" in said


def test_a_missing_or_unreadable_picture_and_an_unknown_kind_are_clear(tmp_path):
    with pytest.raises(DataError, match="no picture"):
        read_image(str(tmp_path / "none.png"))
    (tmp_path / "text.png").write_text("not a picture")
    with pytest.raises(DataError, match="cannot be read as a picture"):
        read_image(str(tmp_path / "text.png"))
    with pytest.raises(ConfigError, match="use one of box, point"):
        GroundConfig("a.png", "cup", kind="mask")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ConfigError, match="st4vla ground IMAGE"):
        GroundConfig("", "cup")
