"""Run `st4vla ground IMAGE "QUESTION"`: ask a checkpoint's planner about a picture and draw what it names."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast, get_args

import numpy as np
from PIL import Image, UnidentifiedImageError
from rich.console import Console
from rich.table import Table

import st4vla.platform.policy as policy
from st4vla.platform.contracts import FrameAnnotation, GroundingKind, Spatial
from st4vla.platform.data.draw import draw_frame
from st4vla.platform.errors import ConfigError, DataError
from st4vla.platform.policy.grounding import SHAPES, Answer, ground

# A drawn picture is this wide at least; smaller ones are enlarged a whole number of times.
MIN_WIDTH_PX = 384


@dataclass(frozen=True)
class GroundConfig:
    """What is asked.

    Attributes:
        image: a picture file.
        question: words for the planner; with `kind`, only what they are about, e.g. "red cube".
        kind: words the question as training did: box, point, target, trace or subgoal; None leaves it as it is.
        checkpoint: a checkpoint's folder; None takes the one that ships with the package.
        out: the picture that is written.
    """

    image: str
    question: str
    kind: GroundingKind | None = None
    checkpoint: str | None = None
    out: str = "runs/ground.png"
    device: str = "cpu"

    def __post_init__(self) -> None:
        if not self.image or not self.question.strip():
            raise ConfigError('No picture or no question is given; write: st4vla ground IMAGE "QUESTION"')
        if self.kind is not None and self.kind not in get_args(GroundingKind):
            raise ConfigError(f"kind is {self.kind!r}; use one of {', '.join(get_args(GroundingKind))}, or null.")


def main(cfg: Mapping[str, Any]) -> None:
    """Ask, draw, and print what was said and where it is."""
    names = ("kind", "checkpoint", "out", "device")
    given = {name: cfg[name] for name in names if cfg.get(name) is not None}
    config = GroundConfig(image=str(cfg["image"] or ""), question=str(cfg["question"] or ""), **given)
    image, (answer,) = read_image(config.image), ask(config)
    matched = () if answer.matched is None else (Spatial("matched", points=(answer.matched,)),)
    written = draw_answer(image, (*answer.places, *matched), Path(config.out))
    Console().print(answer_table(config, answer))
    Console().print(f"{written}", soft_wrap=True)


def ask(config: GroundConfig) -> list[Answer]:
    """Load the checkpoint and ask its planner."""
    from st4vla.platform.checkpoint import load_checkpoint

    image = read_image(config.image)
    folder = config.checkpoint or Path(policy.__path__[0]).parent / "base"
    checkpoint = load_checkpoint(folder, parts_ok=True, device=config.device)
    words = config.question
    if config.kind is not None:
        words = checkpoint.processor.question(cast(GroundingKind, config.kind), words)
    shape = SHAPES.get(config.kind or "")
    return ground(checkpoint.model.eval(), checkpoint.processor, [image], words, shape)


def read_image(path: str) -> np.ndarray:
    """Read a picture as uint8 [H,W,3].

    Raises:
        DataError: there is none, or it cannot be read.
    """
    try:
        with Image.open(path) as picture:
            return np.asarray(picture.convert("RGB"))
    except FileNotFoundError as error:
        raise DataError(f"There is no picture {path}; give the path of a PNG or JPEG file.") from error
    except (UnidentifiedImageError, OSError) as error:
        raise DataError(f"{path} cannot be read as a picture ({error}); give a PNG or JPEG file.") from error


def draw_answer(image: np.ndarray, places: Sequence[Spatial], out: Path) -> Path:
    """Draw places on a picture, enlarged where it is small, and write it."""
    scale = max(1, -(-MIN_WIDTH_PX // image.shape[1]))
    picture = draw_frame(image, as_annotation(places), scale)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        picture.save(out)
    except (OSError, ValueError) as error:
        raise DataError(f"Cannot write {out}: {error}. Give another file with --out, e.g. ground.png.") from error
    return out


def as_annotation(places: Sequence[Spatial]) -> FrameAnnotation:
    """Give places in the form that frames are drawn from; every point is drawn with a small box of its own about it."""
    boxes, points, trace = {}, {}, ()
    for place in places:
        if place.box is not None:
            boxes[unused(place.label or "box", boxes)] = place.box
        for x, y in place.points:
            name = unused(place.label or "point", boxes)
            boxes[name], points[name] = (x - 4, y - 4, x + 4, y + 4), (x, y)
        trace = trace or place.trajectory
    return FrameAnnotation(boxes, points, "", "", trace, "")


def unused(name: str, taken: Mapping[str, Any]) -> str:
    numbered = (name if number == 1 else f"{name} {number}" for number in range(1, len(taken) + 2))
    return next(one for one in numbered if one not in taken)


def answer_table(config: GroundConfig, answer: Answer) -> Table:
    table = Table("what", "value", title=f"{config.image}: {config.question}")
    table.add_row("said", answer.text or "(nothing)")
    for place in answer.places:
        if place.box is not None:
            table.add_row(f"box {place.label}".strip(), ", ".join(f"{value:.1f}" for value in place.box))
        for kind, listed in (("points", place.points), ("trace", place.trajectory)):
            if listed:
                table.add_row(f"{kind} {place.label}".strip(), " ".join(f"({x:.1f}, {y:.1f})" for x, y in listed))
    if answer.matched is not None:
        table.add_row("matched", f"({answer.matched[0]:.1f}, {answer.matched[1]:.1f})")
    if not answer.places:
        table.add_row("places", "none could be read from the answer")
    return table
