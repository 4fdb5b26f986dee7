"""Read the forms in which others keep pictures with questions: LLaVA, COCO, RefCOCO, point sets.

    llava     .json/.jsonl rows {"image" | "images": [...], "conversations": [{"from": "human"|"gpt", "value"}]}
    points    .json/.jsonl rows {"image", "label" | "question", "points": [[x, y], ...]}
    coco      instances_*.json with "images", "annotations" (bbox x, y, width, height) and "categories"
    refcoco   refs(...).p or refs.json rows {"ann_id", "split", "sentences": [{"sent"}]}, beside an instances.json

Coordinates are pixels of the picture unless `coordinates` says "thousandths" or "unit" (0..1 of either side).
"""

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from st4vla.platform.contracts import Point, Spatial
from st4vla.platform.data.json_rows import Row, as_row, field, open_rows, read_json
from st4vla.platform.data.pictures import Asked, Format, PictureSet, Size, checked_box, checked_point
from st4vla.platform.data.plain_pickle import read_plain
from st4vla.platform.errors import ConfigError, DataError
from st4vla.platform.policy.spatial import map_coordinates

COORDINATES = ("pixels", "thousandths", "unit")
IMAGE_TAG = re.compile(r"\s*<image>\s*")
# As in InternVLA-M1's point questions (arXiv 2510.13778, section 3.1): pictures with more are left out.
MOST_POINTS = 10


def open_pictures(kind: str, path: Path, options: Mapping[str, Any]) -> PictureSet:
    """Open a set by its kind.

    Args:
        options: "images", the folder of the pictures (default: the file's own); "coordinates" for llava and points;
            "instances" and "split" for refcoco.

    Raises:
        ConfigError: an unknown option or convention.
        DataError: a file is missing or broken.
    """
    known = {"images", *OPTIONS[kind]}
    if unknown := sorted(set(options) - known):
        raise ConfigError(
            f"data.options of kind {kind} has {', '.join(unknown)}; known are {', '.join(sorted(known))}."
        )
    pictures = Path(options.get("images", path.parent))
    return OPENERS[kind](path, pictures, {key: value for key, value in options.items() if key != "images"})


def scale_of(coordinates: str, size: Size) -> tuple[float, float]:
    """Give what x and y are multiplied by to become pixels."""
    most = {"pixels": (1.0, 1.0), "thousandths": (size[0] / 1000, size[1] / 1000), "unit": (size[0], size[1])}
    return most[coordinates]


def checked_coordinates(options: Mapping[str, Any]) -> str:
    """Give the convention; raise ConfigError for one that is none."""
    name = options.get("coordinates", "pixels")
    if name not in COORDINATES:
        raise ConfigError(f"data.options.coordinates is {name!r}; choose one of {', '.join(COORDINATES)}.")
    return name


def picture_of(row: Row, where: str) -> str:
    """Give the picture's file of a row with "image" or "images"; both spellings are in use."""
    value = row.get("image", row.get("images"))
    files = [value] if isinstance(value, str) else value
    if not isinstance(files, list) or not all(isinstance(one, str) for one in files) or len(files) != 1:
        raise DataError(f"{where}: 'image' or 'images' is {value!r:.80}; expected one file name.")
    return files[0]


def open_llava(path: Path, pictures: Path, options: Mapping[str, Any]) -> PictureSet:
    """Open conversations about pictures; every answered turn is one question."""
    read = Format(picture_of, partial(llava_questions, coordinates=checked_coordinates(options)))
    return PictureSet(path.stem, open_rows(path), pictures, read, str(path), [path])


def llava_questions(row: Row, size: Size, where: str, coordinates: str) -> list[Asked]:
    """Give the turns of a conversation; coordinates in an answer become pixels."""
    turns = [as_row(turn, f"{where}: 'conversations'") for turn in field(row, "conversations", list, where)]
    said = [(field(turn, "from", str, where), field(turn, "value", str, where)) for turn in turns]
    across, down = scale_of(coordinates, size)

    def in_pixels(point: Point) -> Point:
        return checked_point((point[0] * across, point[1] * down), size, f"{where}: 'conversations'")

    asked = []
    for (one, question), (other, answer) in zip(said, said[1:], strict=False):
        if one in ("human", "user") and other in ("gpt", "assistant") and answer.strip():
            words = map_coordinates(answer.strip(), in_pixels)
            asked.append(Asked("words", IMAGE_TAG.sub(" ", question).strip(), Spatial(label=words)))
    return asked


def open_points(path: Path, pictures: Path, options: Mapping[str, Any]) -> PictureSet:
    """Open pictures with points on a named thing, or in answer to a question."""
    read = Format(picture_of, partial(point_questions, coordinates=checked_coordinates(options)))
    return PictureSet(path.stem, open_rows(path), pictures, read, str(path), [path])


def point_questions(row: Row, size: Size, where: str, coordinates: str) -> list[Asked]:
    """Give the one question of a row; none where it has more than MOST_POINTS points."""
    across, down = scale_of(coordinates, size)
    given = field(row, "points", list, where)
    points = tuple(
        checked_point((x * across, y * down), size, where) for x, y in (checked_pair(one, where) for one in given)
    )
    if not 0 < len(points) <= MOST_POINTS:
        return []
    if "label" in row:
        label = field(row, "label", str, where)
        return [Asked("point", label, Spatial(label=label, points=points))]
    words = "[" + ", ".join(f"({x:g}, {y:g})" for x, y in points) + "]"
    return [Asked("words", field(row, "question", str, where), Spatial(label=words, points=points))]


def checked_pair(value: Any, where: str) -> tuple[float, float]:
    """Give a point's two numbers, from [x, y] or {"x", "y"}."""
    pair = [value.get("x"), value.get("y")] if isinstance(value, dict) else value
    numbers = [float(one) for one in pair if isinstance(one, int | float)] if isinstance(pair, list) else []
    if len(numbers) != 2 or len(pair) != 2:
        raise DataError(f"{where}: a point of 'points' is {value!r:.80}; expected [x, y].")
    return numbers[0], numbers[1]


def open_coco(path: Path, pictures: Path, options: Mapping[str, Any]) -> PictureSet:
    """Open COCO's boxes; a category is asked for where the picture shows just one of it."""
    content = as_row(read_json(path), str(path))
    where = str(path)
    names = {one["id"]: one["name"] for one in field(content, "categories", list, where)}
    boxes: dict[int, list[Row]] = defaultdict(list)
    for place, one in enumerate(field(content, "annotations", list, where)):
        row = as_row(one, f"{where} annotations row {place}")
        boxes[field(row, "image_id", int, f"{where} annotations row {place}")].append(row)
    rows = [
        {**image, "boxes": boxes[image["id"]], "names": names}
        for image in field(content, "images", list, where)
        if boxes.get(image["id"])
    ]
    rows = [row for row in rows if lone_boxes(row, where)]
    return PictureSet(path.stem, rows, pictures, Format(file_of, coco_questions), f"{path} images", [path])


def file_of(row: Row, where: str) -> str:
    """Give the picture's file of a COCO row."""
    return field(row, "file_name", str, where)


def lone_boxes(row: Row, where: str) -> list[tuple[str, Row]]:
    """Give (name, annotation) of the categories that a picture shows once, crowds left out."""
    counts = Counter(one.get("category_id") for one in row["boxes"])
    crowds = {one.get("category_id") for one in row["boxes"] if one.get("iscrowd")}
    found = []
    for one in row["boxes"]:
        category = field(one, "category_id", int, where)
        if category not in row["names"]:
            raise DataError(f"{where}: annotation {one.get('id')} has category {category}, which 'categories' lacks.")
        if counts[category] == 1 and category not in crowds:
            found.append((row["names"][category], one))
    return found


def coco_questions(row: Row, size: Size, where: str) -> list[Asked]:
    """Ask for the box of every category that the picture shows once."""
    return [box_question(name, one, size, where) for name, one in lone_boxes(row, where)]


def box_question(label: str, annotation: Row, size: Size, where: str) -> Asked:
    """Ask for a COCO box, [x, y, width, height] in pixels."""
    name = f"{where}: 'bbox' of annotation {annotation.get('id')}"
    given = field(annotation, "bbox", list, where)
    if len(given) != 4 or not all(isinstance(value, int | float) for value in given):
        raise DataError(f"{name} is {given!r:.80}; expected four numbers.")
    x, y, width, height = given
    box = checked_box((x, y, x + width, y + height), size, name)
    return Asked("box", label, Spatial(label=label, box=box))


def open_refcoco(path: Path, pictures: Path, options: Mapping[str, Any]) -> PictureSet:
    """Open sentences that refer to one object of a COCO picture."""
    if "instances" not in options:
        raise ConfigError("data.options.instances is missing; give the instances.json that belongs to the references.")
    instances = Path(options["instances"])
    content = as_row(read_json(instances), str(instances))
    boxes = {one["id"]: one for one in field(content, "annotations", list, str(instances))}
    files = {one["id"]: one["file_name"] for one in field(content, "images", list, str(instances))}
    split = options.get("split", "train")
    rows = [
        joined(as_row(ref, f"{path} row {place}"), boxes, files, f"{path} row {place}")
        for place, ref in enumerate(read_references(path))
        if ref.get("split") == split
    ]
    return PictureSet(path.stem, rows, pictures, Format(file_of, reference_questions), str(path), [path, instances])


def read_references(path: Path) -> Sequence[Row]:
    """Read the published pickle, plain containers only, or the same as JSON."""
    if path.suffix != ".p":
        return open_rows(path)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error}.") from error
    rows = read_plain(content, str(path))
    if not isinstance(rows, list):
        raise DataError(f"{path} holds a {type(rows).__name__}; expected a list of references.")
    return rows


def joined(ref: Row, boxes: Mapping[int, Row], files: Mapping[int, str], where: str) -> Row:
    """Join a reference with its box and its picture."""
    number = field(ref, "ann_id", int, where)
    if number not in boxes or boxes[number].get("image_id") not in files:
        raise DataError(f"{where}: 'ann_id' is {number}, which the instances lack; use those it was published with.")
    box = boxes[number]
    return {"file_name": files[box["image_id"]], "box": box, "sentences": field(ref, "sentences", list, where)}


def reference_questions(row: Row, size: Size, where: str) -> list[Asked]:
    """Ask for the box by each of the reference's sentences."""
    return [box_question(field(one, "sent", str, where), row["box"], size, where) for one in row["sentences"]]


OPENERS: dict[str, Callable[[Path, Path, Mapping[str, Any]], PictureSet]] = {
    "llava": open_llava,
    "points": open_points,
    "coco": open_coco,
    "refcoco": open_refcoco,
}
OPTIONS = {"llava": ("coordinates",), "points": ("coordinates",), "coco": (), "refcoco": ("instances", "split")}
