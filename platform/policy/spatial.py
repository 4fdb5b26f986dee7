"""The spatial language: how a box, points or a trajectory are written as text, and read back from any text.

    box          <box>[[x1, y1, x2, y2]]</box>
    points       <point>[[x, y], [x, y]]</point>
    trajectory   <trace>[[x, y], [x, y]]</trace>

Text carries whole numbers in the planner's own coordinates; the platform carries pixels of the source image.
`CoordinateSpace` goes between the two. The reader also understands what published checkpoints answer:
{"bbox_2d": [x1, y1, x2, y2]}, {"point_2d": [x, y]}, one or many, lists of tuples [(x, y), (x, y)], and bare
[x, y] or (x1, y1, x2, y2). The rest of a text may be anything.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from st4vla.platform.contracts import Box, Point, Spatial
from st4vla.platform.errors import PolicyError

Shape = Literal["box", "point", "trace"]
TAGGED = re.compile(r"<(box|point|trace)>(.*?)</\1>", re.DOTALL)
LABEL = re.compile(r'"label"\s*:\s*"([^"]*)"|<ref>([^<]*)</ref>')
NUMBER = re.compile(r"-?\d{1,6}(?:\.\d{1,6})?")
KEYED = re.compile(r'"(bbox_2d|point_2d)"\s*:\s*\[([^\[\]]*)\]')
OBJECT = re.compile(r"\{[^{}]*\}")
NAMED = re.compile(r"(?:<ref>[^<]*</ref>\s*)?<(box|point|trace)>.*?</\1>", re.DOTALL)
BARE = re.compile(r"[\[\(]\s*-?\d[\d\.]*(?:\s*,\s*-?\d[\d\.]*){1,3}\s*[\]\)]")
TUPLES = re.compile(r"\[\s*(?:[\(\[][^\(\)\[\]]*[\)\]]\s*,?\s*)+\]")


class SpatialParseError(PolicyError):
    """A text holds no box, point or trajectory that can be read."""


@dataclass(frozen=True)
class CoordinateSpace:
    """The two frames of one image: its own pixels, and the numbers the planner speaks."""

    source_width: int
    source_height: int
    spoken_width: int
    spoken_height: int

    def speak(self, point: Point) -> tuple[int, int]:
        x = round(point[0] * self.spoken_width / self.source_width)
        y = round(point[1] * self.spoken_height / self.source_height)
        return min(max(x, 0), self.spoken_width), min(max(y, 0), self.spoken_height)

    def hear(self, x: float, y: float) -> Point:
        return x * self.source_width / self.spoken_width, y * self.source_height / self.spoken_height


def write_box(box: Box, space: CoordinateSpace) -> str:
    x1, y1 = space.speak((box[0], box[1]))
    x2, y2 = space.speak((box[2], box[3]))
    return f"<box>[[{x1}, {y1}, {x2}, {y2}]]</box>"


def write_points(points: Sequence[Point], space: CoordinateSpace, shape: Shape = "point") -> str:
    pairs = (space.speak(point) for point in points)
    return f"<{shape}>[{', '.join(f'[{x}, {y}]' for x, y in pairs)}]</{shape}>"


def thin(points: Sequence[Point], most: int) -> tuple[Point, ...]:
    """Keep at most `most` points, evenly over the sequence, the first and the last among them."""
    if len(points) <= most:
        return tuple(points)
    return tuple(points[round(i * (len(points) - 1) / (most - 1))] for i in range(most))


def read_spatial(text: str, space: CoordinateSpace, shape: Shape | None = None) -> Spatial:
    """Read the first box, point list and trajectory of any text, in pixels of the source image.

    Args:
        shape: what the numbers of a text without a tag or key mean, where there are pairs of them.

    Raises:
        SpatialParseError: nothing could be read; no other error, whatever the text.
    """
    label = next((a or b for a, b in LABEL.findall(text)), "")
    found = {tag: numbers(body) for tag, body in reversed(TAGGED.findall(text))}
    for key, body in reversed(KEYED.findall(text)):
        found.setdefault("box" if key == "bbox_2d" else "point", numbers(body))
    if not found and (match := TUPLES.search(text) or BARE.search(text)):
        values = numbers(match.group())
        found[shape or ("box" if len(values) == 4 and match.group().count("(") < 2 else "point")] = values
    box = as_box(found.get("box", ()), space)
    points, trajectory = as_points(found.get("point", ()), space), as_points(found.get("trace", ()), space)
    if box is None and not points and not trajectory:
        raise SpatialParseError(f"No box, point or trace in {text[:80]!r}; expected e.g. <point>[[12, 34]]</point>.")
    return Spatial(label=label, box=box, points=points, trajectory=trajectory)


def map_coordinates(text: str, change: Callable[[Point], tuple[float, float]]) -> str:
    """Write every coordinate of a text anew, in tags, under keys and in lists of tuples; other numbers stay.

    Numbers are taken in pairs, x before y; a part with an odd count of them is left as it is.
    """

    def rewritten(part: str) -> str:
        values = [float(number) for number in NUMBER.findall(part)]
        if len(values) % 2:
            return part
        moved = iter([value for x, y in zip(values[0::2], values[1::2], strict=True) for value in change((x, y))])
        return NUMBER.sub(lambda _: f"{next(moved):g}", part)

    def inside(part: re.Match[str]) -> str:
        whole, begin, end = part.group(), part.start(2) - part.start(), part.end(2) - part.start()
        return whole[:begin] + rewritten(whole[begin:end]) + whole[end:]

    if TAGGED.search(text) or KEYED.search(text):
        return KEYED.sub(inside, TAGGED.sub(inside, text))
    return TUPLES.sub(lambda part: rewritten(part.group()), text)


def read_all(text: str, space: CoordinateSpace, shape: Shape | None = None) -> tuple[Spatial, ...]:
    """Read every place that a text names, in order: Qwen's lists of objects, several tags, several boxes in one tag.

    Raises:
        SpatialParseError: nothing could be read; no other error, whatever the text.
    """
    pieces = [piece for piece in OBJECT.findall(text) if KEYED.search(piece)]
    pieces = pieces or [match.group() for match in NAMED.finditer(text)]
    places: list[Spatial] = []
    for piece in pieces:
        try:
            places += split_boxes(read_spatial(piece, space, shape), piece, space)
        except SpatialParseError:
            continue
    return tuple(places) or (read_spatial(text, space, shape),)


def split_boxes(place: Spatial, piece: str, space: CoordinateSpace) -> list[Spatial]:
    """Give one place for each of several boxes in one tag."""
    tagged = TAGGED.search(piece)
    values = numbers(tagged.group(2)) if tagged and tagged.group(1) == "box" else ()
    if len(values) < 8:
        return [place]
    fours = [values[at : at + 4] for at in range(0, len(values) - 3, 4)]
    return [Spatial(place.label, box=as_box(four, space)) for four in fours]


def numbers(text: str) -> tuple[float, ...]:
    return tuple(float(number) for number in NUMBER.findall(text))


def as_box(values: Sequence[float], space: CoordinateSpace) -> Box | None:
    if len(values) < 4:
        return None
    (x1, y1), (x2, y2) = space.hear(values[0], values[1]), space.hear(values[2], values[3])
    return min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)


def as_points(values: Sequence[float], space: CoordinateSpace) -> tuple[Point, ...]:
    return tuple(space.hear(x, y) for x, y in zip(values[0::2], values[1::2], strict=False))
