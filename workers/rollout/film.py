"""Render an episode from its recording and draw into each frame what was asked, what was grounded and what came of it.

The main camera stands large on the left, any other small on the right, the instruction above, the state of the
episode below the small one. Points are where the plan pointed at the look that was valid at that frame; boxes and
traces are what the planner answers when it is asked about that look's picture again.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from st4vla.platform.contracts import EpisodeResult, EpisodeSpec, Spatial
from st4vla.platform.data.video import VideoConfig, encode
from st4vla.workers.rollout.episode import Beat, Look, Recording, Rollout, no_beat

LARGE, SMALL, BANNER = 384, 192, 40
PLAYBACK_FPS = 10
LAST_FRAME_REPEATS = 12
# Looks of an episode whose pictures the planner is asked about; of more an even choice, each holds until the next.
MOST_READ_OUTS = 24

INK, PAPER, GREY = (245, 245, 245), (24, 26, 31), (150, 155, 165)
GOOD, BAD, MARK, WAY = (76, 175, 106), (214, 84, 76), (255, 210, 60), (76, 201, 240)


# Gives for pictures, each under its instruction, what the planner sees; [] if it cannot say.
ReadOut = Callable[[Sequence[np.ndarray], Sequence[str]], Sequence[Spatial]]
Views = Mapping[str, np.ndarray]


def see_nothing(images: Sequence[np.ndarray], instructions: Sequence[str]) -> list[Spatial]:
    """Give no read-outs."""
    return []


class Filmable(Protocol):
    """A world that can render its snapshots; each frame has `rgb`, uint8 [H,W,3]."""

    def reset(self, spec: EpisodeSpec) -> None: ...
    def render_snapshot(self, snapshot: np.ndarray) -> Mapping[str, Any]: ...


def film_episode(
    world: Filmable, spec: EpisodeSpec, rollout: Rollout, beat: Beat = no_beat, read_out: ReadOut = see_nothing
) -> bytes:
    """Give the episode as an MP4 at twice real time.

    Raises:
        ValueError: the rollout has no recording, as after a crash.
    """
    if rollout.recording is None:
        raise ValueError(f"episode {spec.episode_id} left no recording: {rollout.result.reason}")
    world.reset(spec)
    views = []
    for step, snapshot in enumerate(rollout.recording.snapshots):
        beat("render", f"frame {step}" if step else "first frame")
        views.append(_views(world, snapshot))
    beat("policy", "read-out")
    recording = replace(rollout.recording, looks=with_read_outs(rollout.recording.looks, views, read_out))
    frames = [compose(seen, spec, recording, rollout.result, step) for step, seen in enumerate(views)]
    frames += [frames[-1]] * LAST_FRAME_REPEATS
    return encode(np.stack(frames), PLAYBACK_FPS, VideoConfig(quality=23))


def _views(world: Filmable, snapshot: np.ndarray) -> dict[str, np.ndarray]:
    return {camera: np.asarray(frame.rgb) for camera, frame in world.render_snapshot(snapshot).items()}


def with_read_outs(looks: Sequence[Look], views: Sequence[Views], read_out: ReadOut) -> tuple[Look, ...]:
    """Add to looks the box and the trace that the planner answers for their pictures, in pixels of what it saw.

    Args:
        views: one for each control step, main camera first.
    """
    asked = chosen_looks(looks)
    pictures = [_as_seen(looks[row], views) for row in asked]
    answers = iter(read_out(pictures, [looks[row].instruction for row in asked]) if asked else ())
    told, valid = list(looks), None
    for row, look in enumerate(looks):
        valid = next(answers, None) if row in asked else valid
        if valid is not None:
            points = look.spatial.points if look.spatial else ()
            told[row] = replace(look, spatial=replace(valid, points=points))
    return tuple(told)


def chosen_looks(looks: Sequence[Look], most: int = MOST_READ_OUTS) -> list[int]:
    """Choose the looks to ask about: all, or an even choice, and each with which the instruction changed."""
    pictured = [row for row, look in enumerate(looks) if look.seen]
    if not pictured:
        return []
    even = np.unique(np.linspace(0, len(pictured) - 1, min(most, len(pictured))).round().astype(int))
    changed = {row for row in pictured[1:] if looks[row].instruction != looks[row - 1].instruction}
    return sorted({pictured[place] for place in even} | changed)


def _as_seen(look: Look, views: Sequence[Views]) -> np.ndarray:
    assert look.seen is not None  # such looks alone are chosen
    main = next(iter(views[look.step].values()))
    return np.asarray(Image.fromarray(main).resize(look.seen, Image.Resampling.BICUBIC))


def compose(views: Views, spec: EpisodeSpec, recording: Recording, result: EpisodeResult, step: int) -> np.ndarray:
    """Compose one frame of the film: uint8 [424,576,3] from views {camera: uint8 [H,W,3]}, main camera first."""
    canvas = Image.new("RGB", (LARGE + SMALL, BANNER + LARGE), PAPER)
    pen = ImageDraw.Draw(canvas)
    look = look_at(recording, step)
    instruction = look.instruction if look else spec.instruction
    pen.text((10, 10), _shorten(instruction, 62), INK, font=ImageFont.load_default(16))
    main, *others = views.values()
    shown = fit(main, LARGE)
    canvas.paste(Image.fromarray(main).resize(shown, Image.Resampling.BICUBIC), (0, BANNER))
    if look is not None and look.spatial is not None:
        seen = look.seen or (main.shape[1], main.shape[0])
        draw_spatial(pen, look.spatial, (shown[0] / seen[0], shown[1] / seen[1]), (0, BANNER))
    for view in others[:1]:
        canvas.paste(Image.fromarray(view).resize(fit(view, SMALL), Image.Resampling.BICUBIC), (LARGE, BANNER))
    _write_state(pen, spec, recording, result, step)
    return np.asarray(canvas)


def look_at(recording: Recording, step: int) -> Look | None:
    """Give the look that was valid at a step: the last one at or before it."""
    past = [look for look in recording.looks if look.step <= step]
    return past[-1] if past else None


def fit(image: np.ndarray, edge: int) -> tuple[int, int]:
    """Give width and height of an image scaled to fit a square."""
    height, width = image.shape[:2]
    return round(edge * width / max(width, height)), round(edge * height / max(width, height))


def draw_spatial(
    pen: ImageDraw.ImageDraw, spatial: Spatial, scale: tuple[float, float], corner: tuple[int, int]
) -> None:
    """Draw a read-out given in pixels of the source image onto its enlargement, by x and by y, at `corner`."""

    def place(point: tuple[float, float]) -> tuple[float, float]:
        return corner[0] + point[0] * scale[0], corner[1] + point[1] * scale[1]

    if spatial.box is not None:
        x1, y1, x2, y2 = spatial.box
        pen.rectangle([place((x1, y1)), place((x2, y2))], outline=MARK, width=2)
        pen.text((place((x1, y1))[0], place((x1, y1))[1] - 16), spatial.label, MARK, font=ImageFont.load_default(13))
    if len(spatial.trajectory) > 1:
        pen.line([place(point) for point in spatial.trajectory], fill=WAY, width=3, joint="curve")
    for point in spatial.points:
        x, y = place(point)
        pen.ellipse([x - 4, y - 4, x + 4, y + 4], fill=MARK, outline=PAPER)


def _write_state(
    pen: ImageDraw.ImageDraw, spec: EpisodeSpec, recording: Recording, result: EpisodeResult, step: int
) -> None:
    """Write suite, task, step and, on the last frame, the verdict into the lower right panel."""
    left, top = LARGE + 12, BANNER + SMALL + 14
    last = len(recording.snapshots) - 1
    looks = sum(look.step <= step for look in recording.looks)
    lines = [f"{spec.suite}", f"{spec.task}, seed {spec.seed}", f"step {step} of {last}", f"look {looks}"]
    lines += [name.replace("_", " ") for name in spec.perturbations]
    for number, line in enumerate(lines):
        pen.text((left, top + 20 * number), _shorten(line, 26), INK if number < 2 else GREY, ImageFont.load_default(13))
    if step == last:
        verdict, colour = ("success", GOOD) if result.success else ("failed", BAD)
        pen.rectangle([LARGE, BANNER + LARGE - 34, LARGE + SMALL, BANNER + LARGE], fill=colour)
        pen.text((left, BANNER + LARGE - 28), verdict, INK, font=ImageFont.load_default(16))


def _shorten(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 3].rstrip() + "..."
