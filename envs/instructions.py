"""Word the tasks: a small grammar with paraphrases, some of them kept back for evaluation."""

import re
from collections.abc import Sequence
from typing import Literal

from st4vla.envs.layout import SIDES, Scene, TaskName, check_task, generator
from st4vla.platform.errors import EnvError

Wording = Literal["seen", "held_out"]

# {a} is the object, {b} its container, {in} "in" or "on" as the container asks, {side} a key of SIDES after "to the".
PARAPHRASES: dict[TaskName, dict[Wording, tuple[str, ...]]] = {
    "reach": {
        "seen": (
            "reach the {a}",
            "move to the {a}",
            "move the gripper above the {a}",
            "go to the {a}",
            "hover over the {a}",
            "bring the gripper to the {a}",
            "point at the {a}",
        ),
        "held_out": ("hold the hand above the {a}", "approach the {a} from above", "find the {a} and stop over it"),
    },
    "push": {
        "seen": (
            "push the {a} {side}",
            "move the {a} {side} by pushing it",
            "slide the {a} {side}",
            "shove the {a} {side}",
            "push {side} the {a}",
            "give the {a} a push {side}",
        ),
        "held_out": ("nudge the {a} {side}", "make the {a} slide {side}", "drive the {a} {side} across the table"),
    },
    "pick_up": {
        "seen": (
            "pick up the {a}",
            "lift the {a}",
            "grasp the {a} and lift it",
            "take the {a}",
            "pick the {a} up",
            "raise the {a} from the table",
        ),
        "held_out": ("grab the {a} and hold it up", "get the {a} off the table", "collect the {a}"),
    },
    "put_on": {
        "seen": (
            "put the {a} {in} the {b}",
            "place the {a} {in} the {b}",
            "pick up the {a} and put it {in} the {b}",
            "set the {a} down {in} the {b}",
            "move the {a} to the {b}",
            "take the {a} to the {b}",
        ),
        "held_out": ("drop the {a} {in} the {b}", "the {a} belongs {in} the {b}", "leave the {a} {in} the {b}"),
    },
    "sort_three": {
        "seen": (
            "put {list}",
            "place {list}",
            "sort the objects: put {list}",
            "sort the three objects by colour",
            "put each object with its own colour",
            "move every object to the container of its colour",
        ),
        "held_out": (
            "tidy up: {list}",
            "match the objects and the containers by colour",
            "clear the table, every object to its colour",
        ),
    },
}
# Those of sort_three that name every pair; the only ones that can say a mapping other than by colour.
PREPOSITIONS = {"bin": "in", "plate": "on"}


def side_phrase(side: str) -> str:
    """Word a side: "to the left", "towards the robot"."""
    return f"to the {side}" if side in ("left", "right") else side


def preposition(container: str) -> str:
    """Give "in" or "on" for a container's name."""
    return PREPOSITIONS[container.split()[-1]]


def pair_list(names: Sequence[str]) -> str:
    """Word pairs of object and container, given one after the other."""
    pairs = zip(names[::2], names[1::2], strict=True)
    clauses = [f"the {thing} {preposition(place)} the {place}" for thing, place in pairs]
    return ", ".join(clauses[:-1]) + f" and {clauses[-1]}" if len(clauses) > 1 else clauses[0]


def names_of(scene: Scene) -> tuple[str, ...]:
    """List the names an instruction of this scene needs, in the order `instruction` takes them."""
    targets, places = scene.names(scene.targets), scene.names(scene.destinations)
    if scene.side:
        return (*targets, scene.side)
    return tuple(name for pair in zip(targets, places, strict=True) for name in pair) if places else targets


def by_colour(names: Sequence[str]) -> bool:
    """Tell whether each object of a sorting goes to the container of its own colour."""
    pairs = zip(names[::2], names[1::2], strict=True)
    return all(thing.split()[0] == place.split()[0] for thing, place in pairs)


def instruction(task: str, names: Sequence[str], seed: int, wording: Wording = "seen") -> str:
    """Word one episode's task; the same arguments always give the same words.

    Args:
        task: name of the task.
        names: (object,) for reach and pick_up, (object, side) for push, (object, container) for put_on, and three
            times (object, container) in one row for sort_three.
        seed: chooses among the paraphrases.
        wording: "seen" for those of training, "held_out" for those kept for evaluation.

    Raises:
        EnvError: there is no such task or wording.
    """
    known = check_task(task)
    if wording not in PARAPHRASES[known]:
        raise EnvError(f"There is no wording {wording!r}; choose seen or held_out.")
    choices = PARAPHRASES[known][wording]
    if known == "sort_three" and not by_colour(names):
        choices = tuple(choice for choice in choices if "{list}" in choice)
    template = choices[generator(seed, f"wording {wording}").integers(len(choices))]
    if known == "sort_three":
        return template.format(list=pair_list(names))
    if known == "push":
        return template.format(a=names[0], side=side_phrase(names[1]))
    return template.format(a=names[0], **_place_words(names[1:]))


def _place_words(places: Sequence[str]) -> dict[str, str]:
    return {"b": places[0], "in": preposition(places[0])} if places else {}


def vocabulary() -> list[str]:
    """List every word an instruction may hold besides the names of things, held-out wordings included, sorted."""
    texts = [text for forms in PARAPHRASES.values() for choices in forms.values() for text in choices]
    texts += [side_phrase(side) for side in SIDES] + list(PREPOSITIONS.values()) + ["the and"]
    return sorted({word for text in texts for word in re.findall(r"[a-z]+", re.sub(r"\{\w+\}", " ", text))})
