"""Word the tasks: a small grammar with paraphrases, some of them kept back for evaluation.

Of what is kept back, "held_out" are new sentences of words that training uses in others, and "new_words" hold a word,
mostly the verb, that training never uses: only a planner that has read more than our instructions can know those.
"""

import re
from collections.abc import Sequence
from typing import Literal

from st4vla.envs.layout import SIDES, Scene, TaskName, check_task, generator
from st4vla.platform.errors import EnvError

Wording = Literal["seen", "held_out", "new_words"]

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
            "approach the {a}",
            "find the {a} and move to it",
        ),
        "held_out": (
            "bring the gripper above the {a}",
            "find the {a} and hover over it",
            "approach the {a} from above",
        ),
        "new_words": ("hold the hand above the {a}", "search for the {a} and stop over it", "visit the {a}"),
    },
    "push": {
        "seen": (
            "push the {a} {side}",
            "move the {a} {side} by pushing it",
            "slide the {a} {side}",
            "shove the {a} {side}",
            "push {side} the {a}",
            "give the {a} a push {side}",
            "make the {a} move {side}",
            "nudge the {a} {side}",
        ),
        "held_out": ("give the {a} a nudge {side}", "make the {a} slide {side}", "shove {side} the {a}"),
        "new_words": ("press the {a} {side}", "drive the {a} {side} across the table", "shift the {a} {side}"),
    },
    "pick_up": {
        "seen": (
            "pick up the {a}",
            "lift the {a}",
            "grasp the {a} and lift it",
            "take the {a}",
            "pick the {a} up",
            "raise the {a} from the table",
            "grab the {a}",
            "get the {a} and hold it up",
        ),
        "held_out": ("grab the {a} and raise it", "get the {a} from the table", "take the {a} and hold it up"),
        "new_words": ("clutch the {a}", "have the {a} off its place", "collect the {a}"),
    },
    "put_on": {
        "seen": (
            "put the {a} {in} the {b}",
            "place the {a} {in} the {b}",
            "pick up the {a} and put it {in} the {b}",
            "set the {a} down {in} the {b}",
            "move the {a} to the {b}",
            "take the {a} to the {b}",
            "drop the {a} {in} the {b}",
            "take the {a} and leave it {in} the {b}",
        ),
        "held_out": (
            "take the {a} and drop it {in} the {b}",
            "leave the {a} {in} the {b}",
            "pick up the {a} and set it down {in} the {b}",
        ),
        "new_words": ("stow the {a} {in} the {b}", "the {a} belongs {in} the {b}", "deliver the {a} to the {b}"),
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
            "sort the three objects: place {list}",
            "sort every object by its colour",
            "move each object to the container of its own colour",
        ),
        "new_words": (
            "tidy up: {list}",
            "match objects and bins by colour",
            "clear the table, everything to its colour",
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
        wording: "seen" for those of training, "held_out" and "new_words" for those kept for evaluation.

    Raises:
        EnvError: there is no such task or wording.
    """
    known = check_task(task)
    if wording not in PARAPHRASES[known]:
        raise EnvError(f"There is no wording {wording!r}; choose seen, held_out or new_words.")
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
    """List every word an instruction may hold besides the names of things, sorted; of all wordings."""
    texts = [text for forms in PARAPHRASES.values() for choices in forms.values() for text in choices]
    texts += [side_phrase(side) for side in SIDES] + list(PREPOSITIONS.values()) + ["the and"]
    return sorted({word for text in texts for word in re.findall(r"[a-z]+", re.sub(r"\{\w+\}", " ", text))})
