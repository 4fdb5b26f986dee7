"""Draw what a policy under training says and does on held-out samples, beside the truth, for people to look at."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from st4vla.platform.contracts import ActionForm, ActionSample, GroundingSample, Spatial
from st4vla.platform.data.draw import contact_sheet
from st4vla.platform.train.metrics import moves_tool
from st4vla.platform.train.validation import Act, Answer, observation_of

DRAWINGS = "drawings"
TRUTH, SAID = (105, 240, 174), (255, 112, 67)
NOTE = "the truth is green and thin, the policy's answer orange and thick"
SHOWN_KINDS = ("box", "target", "point", "trace")
PICTURE_PX, ROW = 320, 3
AXES = ("x [m]", "y [m]", "z [m]", "turn x [rad]", "turn y [rad]", "turn z [rad]", "gripper")


def chosen(samples: Sequence[GroundingSample], count: int) -> list[GroundingSample]:
    """Choose up to `count` samples whose answer can be drawn, kind after kind in turn, each kind's evenly spread."""
    by_kind = [own for kind in SHOWN_KINDS if (own := [sample for sample in samples if sample.kind == kind])]
    quota = -(-count // max(1, len(by_kind)))
    spread = [
        [own[place * len(own) // min(quota, len(own))] for place in range(min(quota, len(own)))] for own in by_kind
    ]
    return [own[turn] for turn in range(quota) for own in spread if turn < len(own)][:count]


def draw_answers(samples: Sequence[GroundingSample], answers: Sequence[Spatial | None], title: str) -> Image.Image:
    """Lay out frames with the true and the given answer in them; None is an answer that could not be read."""
    pictures = []
    for sample, answer in zip(samples, answers, strict=True):
        caption = f"{'' if answer else 'unreadable, '}{sample.kind}: {sample.label}"
        pictures.append((caption, draw_pair(sample.image, sample.answer, answer)))
    rows = [(f"held out {start + 1}", pictures[start : start + ROW]) for start in range(0, len(pictures), ROW)]
    return contact_sheet(title, rows, NOTE)


def draw_pair(image: np.ndarray, truth: Spatial, said: Spatial | None) -> Image.Image:
    """Draw two answers, in pixels of the image, on uint8 [H,W,3] enlarged to a common width."""
    scale = PICTURE_PX / image.shape[1]
    size = (PICTURE_PX, round(image.shape[0] * scale))
    picture = Image.fromarray(image).resize(size, Image.Resampling.LANCZOS)
    pen = ImageDraw.Draw(picture)
    for answer, color, width in ((said, SAID, 4), (truth, TRUTH, 2)):
        if answer is not None:
            _draw(pen, answer, color, width, scale)
    return picture


def _draw(pen: ImageDraw.ImageDraw, answer: Spatial, color: tuple[int, int, int], width: int, scale: float) -> None:
    if answer.box is not None:
        x1, y1, x2, y2 = (value * scale for value in answer.box)
        pen.rectangle([min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)], outline=color, width=width)
    for x, y in answer.points:
        pen.ellipse(_around(x * scale, y * scale, 2 * width), fill=color, outline=(0, 0, 0))
    trace = [(x * scale, y * scale) for x, y in answer.trajectory]
    if len(trace) >= 2:
        pen.line(trace, fill=color, width=width)
        pen.ellipse(_around(*trace[-1], 2 * width), outline=color, width=width)


def _around(x: float, y: float, radius: float) -> list[float]:
    return [x - radius, y - radius, x + radius, y + radius]


def act_open_loop(chunks: Sequence[ActionSample], act: Act, batch_size: int = 8) -> tuple[np.ndarray, np.ndarray]:
    """Predict the chunks of one episode that follow each other, each from the recorded frame it starts at.

    One episode is of one embodiment, whose statistics scale all its chunks.

    Returns:
        predicted and demonstrated actions, both [N,A], rows after the episode's end left out.
    """
    predicted: list[np.ndarray] = []
    for start in range(0, len(chunks), batch_size):
        batch = chunks[start : start + batch_size]
        keys = [(start + offset, 0) for offset in range(len(batch))]
        predicted += act([observation_of(sample) for sample in batch], keys, batch[0].statistics_key)
    rows = [~np.asarray(sample.is_pad, bool) for sample in chunks]
    kept = [actions[row] for actions, row in zip(predicted, rows, strict=True)]
    return np.concatenate(kept), np.concatenate([s.actions[row] for s, row in zip(chunks, rows, strict=True)])


def plot_actions(
    predicted: np.ndarray, demonstrated: np.ndarray, chunk: int, title: str, path: Path, form: ActionForm
) -> None:
    """Plot every column of two runs of actions [N,A] over the control steps; a grey line where a chunk begins."""
    from matplotlib.figure import Figure

    count = demonstrated.shape[1]
    names = AXES if moves_tool(form, count) else [f"column {number}" for number in range(count)]
    figure = Figure(figsize=(9, 1.3 * count + 0.8), layout="constrained")
    figure.suptitle(title)
    panels: Any = figure.subplots(count, 1, sharex=True, squeeze=False)
    for number, panel in enumerate(panels[:, 0]):
        for start in range(0, len(demonstrated), chunk):
            panel.axvline(start, color="0.9", linewidth=1)
        panel.step(range(len(demonstrated)), demonstrated[:, number], where="post", color="tab:green", label="shown")
        panel.step(range(len(predicted)), predicted[:, number], where="post", color="tab:orange", label="predicted")
        panel.set_ylabel(names[number], fontsize=8)
    panels[0, 0].legend(loc="upper right", fontsize=8)
    panels[-1, 0].set_xlabel("control step")
    figure.savefig(path, dpi=90)


class Gallery:
    """Draw the same held-out samples at every validation, into files of their own by step.

    All workers answer, so that sharded weights are gathered in step; only one that has a folder writes.
    """

    def __init__(
        self,
        folder: Path | None,
        questions: Sequence[GroundingSample],
        episode: Sequence[ActionSample],
        name: str,
        form: ActionForm = "delta_end_effector",
    ) -> None:
        """Take the questions and the chunks of an episode as they are.

        Args:
            name: what the plot calls the episode.
            form: what its actions are.
        """
        self.folder, self.questions, self.episode, self.name = folder, questions, episode, name
        self.form: ActionForm = form

    def draw(self, step: int, answer: Answer, act: Act) -> None:
        """Ask, act, and write `answers_STEP.png` and `actions_STEP.png`."""
        answers = answer(self.questions) if self.questions else []
        actions = act_open_loop(self.episode, act) if self.episode else None
        if self.folder is None:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.questions:
            draw_answers(self.questions, answers, f"step {step}").save(self.folder / f"answers_{step:07d}.png")
        if actions is not None:
            chunk = self.episode[0].actions.shape[0]
            title = f"step {step}: {self.name}, open loop"
            plot_actions(*actions, chunk, title, self.folder / f"actions_{step:07d}.png", self.form)


def drawn_at(folder: Path, step: int) -> list[Path]:
    """List what was drawn at a step of the run in `folder`."""
    return sorted((folder / DRAWINGS).glob(f"*_{step:07d}.png"))
