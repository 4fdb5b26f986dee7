"""Plan episodes: which suites there are, and the list of specs of each; pure functions of their arguments.

The same plan gives the same specs, hence the same episode ids, on any machine. Episode i has the same seed in every
suite, so that suites are compared on the same scenes wherever their task and variant are the same.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from st4vla.envs import perturbations
from st4vla.envs.instructions import Wording, instruction, names_of
from st4vla.envs.layout import TASKS, check_task, draw_scene
from st4vla.platform.contracts import EpisodeSpec
from st4vla.platform.errors import EnvError

EVALUATION_SEEDS = 1_000_000_000  # training seeds lie below, evaluation seeds from here to twice this
EPISODES_PER_SEED = 100_000


@dataclass(frozen=True)
class Suite:
    """One family of episodes.

    Attributes:
        about: what it asks, in one line.
        variant: which scenes.
        wording: which paraphrases.
        tasks: the only tasks it may hold.
        perturbations: applied to every second spec; the one before is its undisturbed twin of the same seed.
    """

    about: str
    variant: str = "default"
    wording: Wording = "seen"
    tasks: tuple[str, ...] = TASKS
    perturbations: tuple[str, ...] = ()


SUITES: dict[str, Suite] = {
    "seen": Suite("Objects and wordings of training, layouts that are new."),
    "unseen_objects": Suite("Combinations of colour and form that training never showed.", variant="unseen_objects"),
    "unseen_wording": Suite("Sentences that training never used, of words that it did.", wording="held_out"),
    "new_words": Suite("Sentences with words that training never used.", wording="new_words"),
    "long_horizon": Suite("Three objects into their containers.", tasks=("sort_three",)),
    "moved_object": Suite("The object is moved while the robot is at it.", perturbations=(perturbations.OBJECT_MOVED,)),
    "changed_instruction": Suite(
        "Another object is asked for while the robot is at it.", perturbations=(perturbations.INSTRUCTION_CHANGED,)
    ),
}


def wording_of(suite: str) -> Wording:
    """Give a suite's wording; training and anything else is worded as seen."""
    return SUITES[suite].wording if suite in SUITES else "seen"


def training_seed(index: int) -> int:
    """Give the seed of training episode `index`.

    Raises:
        EnvError: the index lies outside 0..999 999 999.
    """
    if not 0 <= index < EVALUATION_SEEDS:
        raise EnvError(f"Training episode {index} has no seed; choose 0 to {EVALUATION_SEEDS - 1}.")
    return index


def evaluation_seed(seed: int, index: int) -> int:
    """Give the seed of evaluation episode `index` of a plan with this seed; never a training seed.

    Raises:
        EnvError: the seed lies outside 0..9 999 or the index outside 0..99 999.
    """
    if not (0 <= index < EPISODES_PER_SEED and 0 <= seed < EVALUATION_SEEDS // EPISODES_PER_SEED):
        raise EnvError(
            f"Seed {seed}, episode {index} lies outside seeds 0..9999 of 0..{EPISODES_PER_SEED - 1} episodes."
        )
    return EVALUATION_SEEDS + seed * EPISODES_PER_SEED + index


def make_spec(
    suite: str,
    task: str,
    seed: int,
    variant: str = "default",
    wording: Wording = "seen",
    disturbed_by: tuple[str, ...] = (),
) -> EpisodeSpec:
    """Make one spec, its instruction worded for the scene that its seed draws."""
    words = instruction(task, names_of(draw_scene(task, variant, seed)), seed, wording)
    return EpisodeSpec(suite, task, variant, seed, words, disturbed_by)


def plan(suite: str, tasks: Sequence[str], episodes: int, seed: int) -> list[EpisodeSpec]:
    """Plan a suite: `episodes` of each task, in a disturbed suite each preceded by its undisturbed twin.

    "long_horizon" always holds sort_three, whatever tasks are asked for.

    Raises:
        EnvError: there is no such suite or task, or the seed or number of episodes is out of range.
    """
    if suite not in SUITES:
        raise EnvError(f"There is no suite {suite!r}; choose one of {', '.join(SUITES)}.")
    wanted = [check_task(task) for task in tasks]
    kind = SUITES[suite]
    held = [task for task in wanted if task in kind.tasks] or list(kind.tasks)
    twins = ((), kind.perturbations) if kind.perturbations else ((),)
    return [
        make_spec(suite, task, evaluation_seed(seed, index), kind.variant, kind.wording, disturbed_by)
        for task in held
        for index in range(episodes)
        for disturbed_by in twins
    ]
