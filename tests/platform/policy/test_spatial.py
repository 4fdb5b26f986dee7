"""The spatial language: what is written, what is read, and that reading never fails otherwise."""

import random

import pytest

from st4vla.platform.contracts import Spatial
from st4vla.platform.policy.spatial import (
    CoordinateSpace,
    SpatialParseError,
    read_spatial,
    thin,
    write_box,
    write_points,
)

THOUSANDTHS = CoordinateSpace(128, 64, 1000, 1000)
PIXELS = CoordinateSpace(100, 100, 100, 100)


def test_a_box_is_written_in_the_planners_numbers():
    assert write_box((32, 16, 64, 32), THOUSANDTHS) == "<box>[[250, 250, 500, 500]]</box>"


def test_a_box_comes_back_in_pixels_of_the_source():
    assert read_spatial("<box>[[250, 250, 500, 500]]</box>", THOUSANDTHS).box == (32, 16, 64, 32)


def test_points_and_traces_keep_their_order():
    text = write_points([(1, 2), (30, 4)], PIXELS, "trace")
    assert text == "<trace>[[1, 2], [30, 4]]</trace>"
    assert read_spatial(text, PIXELS).trajectory == ((1, 2), (30, 4))


def test_numbers_outside_the_image_are_written_at_its_edge():
    assert write_points([(-5, 400)], PIXELS) == "<point>[[0, 100]]</point>"


def test_a_box_with_swapped_corners_is_turned_upright():
    assert read_spatial("<box>[[50, 60, 10, 20]]</box>", PIXELS).box == (10, 20, 50, 60)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"label": "apple", "bbox_2d": [10, 20, 30, 40]}', Spatial("apple", box=(10, 20, 30, 40))),
        ('```json\n[{"point_2d": [10, 20], "label": "mug"}]\n```', Spatial("mug", points=((10, 20),))),
        ("[(32, 28), (35, 28)]", Spatial(points=((32, 28), (35, 28)))),
        ("<ref>cup</ref><box>[[1, 2, 3, 4]]</box> and so on", Spatial("cup", box=(1, 2, 3, 4))),
    ],
)
def test_published_answers_are_read_too(text, expected):
    assert read_spatial(text, PIXELS) == expected


def test_pairs_without_a_tag_mean_what_was_asked_for():
    assert read_spatial("[[1, 2], [3, 4]]", PIXELS, "trace").trajectory == ((1, 2), (3, 4))


@pytest.mark.parametrize(
    "text", ["", "there is none", "<box>[[1, 2]]</box>", "<point>[[7]]</point>", '{"bbox_2d": []}']
)
def test_a_text_without_a_place_is_a_typed_error(text):
    with pytest.raises(SpatialParseError, match="expected e.g."):
        read_spatial(text, PIXELS)


def test_any_string_gives_a_value_or_the_typed_error():
    generator = random.Random(0)
    pieces = ["<box>", "</box>", "<point>", "</point>", "<trace>", "[[", "]]", "(", ")", ", ", "-", ".", "9" * 40,
              "1e9", '"bbox_2d": [', '"point_2d"', "\n", "\x00", "\u732b", "<ref>", "12", "{", "}"]  # fmt: skip
    read = 0
    for _ in range(5000):
        text = "".join(generator.choice(pieces) for _ in range(generator.randrange(1, 25)))
        try:
            assert isinstance(read_spatial(text, THOUSANDTHS, generator.choice([None, "box", "trace"])), Spatial)
            read += 1
        except SpatialParseError:
            pass
    assert read > 100


def test_a_long_hostile_string_is_read_in_no_time():
    with pytest.raises(SpatialParseError):
        read_spatial("[(1, " * 20_000, PIXELS)


def test_thinning_keeps_both_ends():
    assert thin([(float(i), 0.0) for i in range(10)], 4) == ((0, 0), (3, 0), (6, 0), (9, 0))
