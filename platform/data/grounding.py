"""Turn frame annotations into questions with answers, in pixels of the frame.

Five kinds: the box of a named object, a point on it, a point on the object that the instruction is about now, the trace
of the end-effector to the end of the current stage, and the next sub-goal in words. A box and a point are asked for by
the object's name, the other three by the instruction.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from st4vla.platform.contracts import FrameAnnotation, GroundingKind, GroundingSample, Spatial
from st4vla.platform.errors import ConfigError

KINDS: tuple[GroundingKind, ...] = ("box", "point", "target", "trace", "subgoal")


@dataclass(frozen=True)
class GroundingConfig:
    """What is asked, and how often.

    Attributes:
        weights: how often each kind is drawn, among those a frame can answer.
        cameras: cameras to ask about; () for all that are annotated.
    """

    weights: Mapping[GroundingKind, float] | None = None
    cameras: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Fill in equal weights and check the kinds."""
        weights = dict(self.weights) if self.weights is not None else dict.fromkeys(KINDS, 1.0)
        object.__setattr__(self, "weights", weights)
        unknown = [kind for kind in weights if kind not in KINDS]
        if unknown:
            raise ConfigError(f"grounding.weights names {', '.join(unknown)}; the kinds are {', '.join(KINDS)}.")
        if min(weights.values(), default=0) < 0 or sum(weights.values()) <= 0:
            raise ConfigError(f"grounding.weights is {weights}; expected none below 0 and at least one above.")

    def weight(self, kind: str) -> float:
        """Give the weight of one kind, 0 if it is not named."""
        return dict(self.weights or {}).get(kind, 0.0)  # type: ignore[arg-type]


def questions(image: np.ndarray, annotation: FrameAnnotation, instruction: str) -> list[GroundingSample]:
    """Give every question that this frame (uint8 [H,W,3]) can answer, objects in their order."""
    dense = {
        "dense_labels": annotation.mask,
        "dense_names": tuple(annotation.boxes) if annotation.mask is not None else (),
    }
    asked = [
        GroundingSample(image, "box", name, Spatial(label=name, box=box), **dense)
        for name, box in annotation.boxes.items()
    ]
    asked += [
        GroundingSample(image, "point", name, Spatial(label=name, points=(point,)), annotation.boxes.get(name), **dense)
        for name, point in annotation.points.items()
    ]
    if annotation.target in annotation.points:
        target, destination = annotation.target, annotation.destination
        answer, box = Spatial(label=target, points=(annotation.points[target],)), annotation.boxes.get(target)
        asked.append(GroundingSample(image, "target", instruction, answer, box, **dense, destination=destination))
    if len(annotation.trace) >= 2:
        answer = Spatial(label=instruction, trajectory=annotation.trace)
        asked.append(GroundingSample(image, "trace", instruction, answer, **dense))
    if annotation.subgoal:
        asked.append(GroundingSample(image, "subgoal", instruction, Spatial(label=annotation.subgoal), **dense))
    return asked


def choose(asked: list[GroundingSample], config: GroundingConfig, rng: np.random.Generator) -> GroundingSample | None:
    """Draw a kind by its weight, then one question of it evenly; None if nothing can be asked."""
    kinds = [kind for kind in KINDS if config.weight(kind) > 0 and any(one.kind == kind for one in asked)]
    if not kinds:
        return None
    weights = np.array([config.weight(kind) for kind in kinds])
    kind = kinds[int(rng.choice(len(kinds), p=weights / weights.sum()))]
    of_kind = [one for one in asked if one.kind == kind]
    return of_kind[int(rng.integers(len(of_kind)))]
