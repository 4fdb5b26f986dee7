"""Validation draws the truth and the policy's answer into held-out frames, and one episode's actions."""

from pathlib import Path

import numpy as np
from PIL import Image

from st4vla.platform.contracts import ActionSample, GroundingSample, Spatial
from st4vla.platform.train.drawings import SAID, TRUTH, Gallery, act_open_loop, chosen, draw_pair, drawn_at

GREY = np.full((160, 160, 3), 128, np.uint8)


def sample(kind: str, answer: Spatial) -> GroundingSample:
    return GroundingSample(GREY, kind, "red cube", answer)  # pyright: ignore[reportArgumentType]


BOX = sample("box", Spatial(box=(20, 20, 60, 60)))
POINT = sample("point", Spatial(points=((100.0, 100.0),)))
WORDS = sample("words", Spatial(label="yes"))


def chunk(start: int, pad: int = 0) -> ActionSample:
    actions = np.tile(np.arange(start, start + 4, dtype=np.float32)[:, None], (1, 7))
    return ActionSample({"wrist": GREY}, None, "push", actions, np.arange(4) >= 4 - pad, "robot")


def act(seen, keys, embodiment):
    assert embodiment == "robot"
    return [np.full((4, 7), key[0], np.float32) for key in keys]


def test_kinds_take_turns_and_words_are_left_out():
    assert chosen([BOX, BOX, WORDS, POINT], 3) == [BOX, POINT, BOX]
    assert chosen([WORDS], 3) == []


def test_both_answers_are_drawn_where_they_are():
    picture = draw_pair(GREY, BOX.answer, POINT.answer)  # twice as wide: 320 pixels
    assert picture.size == (320, 320)
    assert picture.getpixel((40, 80)) == TRUTH and picture.getpixel((200, 200)) == SAID
    assert picture.getpixel((80, 80)) == (128, 128, 128)


def test_the_actions_of_an_episode_follow_each_other_without_padding():
    predicted, shown = act_open_loop([chunk(0), chunk(4, pad=2)], act, batch_size=1)
    assert shown[:, 0].tolist() == [0, 1, 2, 3, 4, 5]
    assert predicted[:, 0].tolist() == [0, 0, 0, 0, 1, 1]  # its noise is drawn by the chunk's place, whatever the batch
    assert act_open_loop([chunk(0), chunk(4)], act)[0][:, 0].tolist() == [0, 0, 0, 0, 1, 1, 1, 1]


def test_every_validation_leaves_pictures_of_its_own(tmp_path: Path):
    gallery = Gallery(tmp_path / "drawings", [BOX, POINT], [chunk(0), chunk(4, pad=2)], "set, episode 3")
    for step in (20, 40):
        gallery.draw(step, lambda asked: [one.answer for one in asked][:1] + [None], act)
    assert [path.name for path in drawn_at(tmp_path, 20)] == ["actions_0000020.png", "answers_0000020.png"]
    assert len(list((tmp_path / "drawings").iterdir())) == 4
    assert Image.open(tmp_path / "drawings" / "answers_0000040.png").width > 640
    Gallery(None, [BOX], [], "").draw(60, lambda asked: [None], act)
    assert drawn_at(tmp_path, 60) == []
