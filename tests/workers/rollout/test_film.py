"""Facts about films, in the world of one dot."""

import io
import resource
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image, ImageDraw

from st4vla.envs.dot_world import DotExpert, DotWorld
from st4vla.platform.contracts import EpisodeSpec, Spatial
from st4vla.platform.data.disk import write_file
from st4vla.platform.errors import DataError
from st4vla.workers.evaluation.films import choose, film_name
from st4vla.workers.rollout.actors import ExpertClient
from st4vla.workers.rollout.episode import Look, Recording, Rollout, RolloutOptions, failed_result, run_episode
from st4vla.workers.rollout.film import (
    BANNER,
    LAST_FRAME_REPEATS,
    MARK,
    PAPER,
    chosen_looks,
    compose,
    draw_spatial,
    film_episode,
    fit,
    look_at,
    with_read_outs,
)
from st4vla.workers.rollout.recordings import load_recording, save_recording

SPEC = EpisodeSpec("seen", "dot", "default", 7, "move the dot to the goal")


def expert_rollout() -> Rollout:
    world = DotWorld()
    return run_episode(world, ExpertClient(world, DotExpert), SPEC, RolloutOptions())


def test_a_film_shows_every_recorded_state_and_rests_on_the_last():
    rollout = expert_rollout()
    assert rollout.result.steps == 7
    with av.open(io.BytesIO(film_episode(DotWorld(), SPEC, rollout)), "r") as film:
        frames = [frame.to_ndarray(format="rgb24") for frame in film.decode(video=0)]
    assert len(frames) == 8 + LAST_FRAME_REPEATS
    assert frames[0].shape == (424, 576, 3)
    assert np.allclose(frames[-1][-10, -20], (76, 175, 106), atol=12)


def test_a_crashed_episode_cannot_be_filmed():
    with pytest.raises(ValueError, match="left no recording: the dot left"):
        film_episode(DotWorld(), SPEC, Rollout(failed_result(SPEC, "crash", "the dot left its world"), None))


def test_a_read_out_is_drawn_where_it_was_grounded():
    image = Image.new("RGB", (300, 300))
    draw_spatial(ImageDraw.Draw(image), Spatial("dot", (10, 20, 30, 40), ((50, 60),)), (3.0, 3.0), (0, 40))
    assert image.getpixel((30, 100)) == MARK
    assert image.getpixel((150, 220)) == MARK


def test_a_wide_picture_keeps_its_shape_and_a_read_out_of_a_square_one_its_place():
    view = np.zeros((480, 640, 3), np.uint8)
    look = Look(0, "go", Spatial("dot", points=((112, 112),)), (224, 224))
    recording = Recording(np.zeros((2, 1)), np.zeros((1, 7)), (look,))
    assert fit(view, 384) == (384, 288)
    frame = compose({"camera": view}, SPEC, recording, failed_result(SPEC, "task", ""), 0)
    assert tuple(frame[BANNER + 144, 192]) == MARK
    assert tuple(frame[BANNER + 300, 192]) == PAPER


def looks_at(*steps: int, instruction: str = "go") -> list[Look]:
    return [Look(step, instruction, None, (64, 48)) for step in steps]


def test_of_many_looks_an_even_choice_is_asked_about_and_every_new_instruction():
    assert chosen_looks(looks_at(*range(5))) == [0, 1, 2, 3, 4]
    assert chosen_looks(looks_at(*range(9)), most=3) == [0, 4, 8]
    assert chosen_looks(looks_at(0, 1, 2) + looks_at(3, 4, 5, instruction="stop"), most=2) == [0, 3, 5]
    assert chosen_looks([Look(0, "go", None)]) == []


def test_what_the_planner_answers_is_drawn_beside_where_the_plan_pointed():
    pointed = Look(1, "go", Spatial("go", points=((5, 6),)), (64, 48))
    views = [{"main": np.full((480, 640, 3), step, np.uint8)} for step in range(3)]
    shown: list[tuple[tuple[int, ...], int]] = []

    def read_out(images, instructions):
        shown.extend((image.shape, int(image[0, 0, 0])) for image in images)
        return [Spatial("dot", (1, 2, 3, 4), trajectory=((5, 6), (7, 8)))] * len(images)

    (look,) = with_read_outs([pointed], views, read_out)
    assert look.spatial == Spatial("dot", (1, 2, 3, 4), ((5, 6),), ((5, 6), (7, 8)))
    assert shown == [((48, 64, 3), 1)]
    assert with_read_outs([pointed], views, lambda images, instructions: []) == (pointed,)


def test_films_of_different_variants_have_different_names():
    first = row(3, True) | {"task": "pick", "variant": "standing/plain"}
    assert film_name(first) == "seen-pick-standing_plain-3-success.mp4"
    assert film_name(first | {"variant": "default"}) == "seen-pick-3-success.mp4"


def test_the_look_at_a_step_is_the_last_one_made():
    recording = Recording(np.zeros((9, 1)), np.zeros((8, 7)), (Look(0, "a", None), Look(4, "b", None)))
    assert [look.instruction for look in map(lambda step: look_at(recording, step), (0, 3, 4, 8)) if look] == list(
        "aabb"
    )


def test_a_recording_survives_the_disk(tmp_path: Path):
    rollout = expert_rollout()
    assert rollout.recording is not None
    looks = (Look(0, "go", Spatial("dot", (1, 2, 3, 4), ((5, 6),), ((7, 8), (9, 10))), (128, 96)), Look(4, "on", None))
    recording = Recording(rollout.recording.snapshots, rollout.recording.actions, looks)
    save_recording(tmp_path / "a.npz", recording)
    read = load_recording(tmp_path / "a.npz")
    assert read.looks == looks
    assert np.array_equal(read.snapshots, recording.snapshots)
    assert [path.name for path in tmp_path.iterdir()] == ["a.npz"]


@pytest.mark.parametrize("content", [b"no", b"", b"PK\x03\x04 cut short"])
def test_a_broken_recording_is_an_error(tmp_path: Path, content: bytes):
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(DataError, match="a.npz is not a recording"):
        load_recording(tmp_path / "a.npz")


def test_what_a_full_disk_refuses_is_an_error_with_the_next_step(tmp_path: Path):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, before[1]))  # Python ignores the signal that comes with it
    try:
        with pytest.raises(DataError, match="a.mp4 could not be written: File too large; .*free some space"):
            write_file(tmp_path / "films" / "a.mp4", b"longer than ten bytes", sync=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list((tmp_path / "films").iterdir()) == []


def row(seed, success, perturbations=(), failure=None):
    failure = ("" if success else "task") if failure is None else failure
    given = {"suite": "seen", "task": "reach", "variant": "default", "seed": seed, "success": success}
    return given | {"perturbations": perturbations, "failure": failure}


def test_half_of_the_films_are_failures():
    rows = [row(seed, success=seed % 2 == 0) for seed in range(10)]
    assert [(one["seed"], one["success"]) for one in choose(rows, 4)] == [(0, True), (2, True), (1, False), (3, False)]


def test_films_go_round_the_tasks_and_then_the_variants():
    rows = [
        row(seed, success) | {"task": task, "variant": variant}
        for task in ("close", "move", "open", "pick")
        for variant in ("bottom/plain", "top/plain")
        for seed, success in ((0, False), (1, False), (2, task in ("close", "open")))
    ]
    shown = [(one["task"], one["variant"], one["seed"]) for one in choose(rows, 4)]
    assert shown == [
        ("close", "bottom/plain", 2),
        ("open", "bottom/plain", 2),
        ("move", "bottom/plain", 0),
        ("pick", "bottom/plain", 0),
    ]
    failed = [(one["task"], one["variant"], one["seed"]) for one in choose([r for r in rows if not r["success"]], 6)]
    assert failed[:4] == [(task, "bottom/plain", 0) for task in ("close", "move", "open", "pick")]
    assert failed[4:] == [("close", "top/plain", 0), ("move", "top/plain", 0)]


def test_successes_fill_the_places_of_failures_that_are_not_there():
    assert [one["seed"] for one in choose([row(seed, True) for seed in range(5)], 4)] == [0, 1, 2, 3]


def test_disturbed_episodes_are_filmed_before_their_twins_and_crashes_never():
    rows = [row(0, True), row(1, True, ("object_moved",)), row(2, False, ("object_moved",), failure="crash")]
    assert [one["seed"] for one in choose(rows, 4)] == [1]
