"""Measure how well the base checkpoint points at named objects on layouts that nobody trained on.

Two answers are scored on the same third-person pictures, against the object's own pixels (every fourth, both ways):
the point the planner says in words, and the point its plan's last token is matched with (`Planner.where`), which
is what the action expert reads.

    python -m benchmarks.base_pointing [CHECKPOINT]
"""

import sys
from pathlib import Path

from st4vla.platform.machine import prepare_process

SCENES = 150
BATCH = 40
TASKS = ("reach", "push", "pick_up", "put_on")


def main() -> None:
    """Measure and record; a checkpoint other than the packaged one is measured only."""
    prepare_process()
    from benchmarks.results import record
    from st4vla.workers.demo import packaged_base

    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else packaged_base()
    said, matched, asked = score(folder)
    print(f"{asked} points: {said:.1f} % in words, {matched:.1f} % by the plan's last token, inside the object's mask")
    if len(sys.argv) == 1:
        command = "python -m benchmarks.base_pointing"
        record("base checkpoint: points inside the named object's mask", 2, round(said, 1), "%", ">= 90", command)
        record("base checkpoint: the plan's last token inside the mask", 2, round(matched, 1), "%", "report", command)


def score(folder: Path) -> tuple[float, float, int]:
    """Give the two hit rates in per cent, and how many points were asked for."""
    from st4vla.envs.stage import Stage
    from st4vla.envs.still import photograph
    from st4vla.envs.suites import EVALUATION_SEEDS
    from st4vla.platform.checkpoint import load_checkpoint
    from st4vla.platform.data.grounding import questions

    stage = Stage()
    stills = [
        still
        for index in range(SCENES)
        for still in photograph(stage, TASKS[index % 4], EVALUATION_SEEDS + index, ("third_person",))
    ]
    asked = [
        (question, still.annotation)
        for still in stills
        for question in questions(still.image, still.annotation, still.instruction)
        if question.kind == "point"
    ]
    checkpoint = load_checkpoint(folder, parts_ok=True)
    hits = [hit for at in range(0, len(asked), BATCH) for hit in answer(checkpoint, asked[at : at + BATCH])]
    said, matched = (100 * sum(column) / len(hits) for column in zip(*hits, strict=True))
    return said, matched, len(hits)


def answer(checkpoint, asked) -> list[tuple[bool, bool]]:
    """Say for each question whether the words and the match lie on the object."""
    import torch

    from st4vla.platform.policy.dense import place_of_peak
    from st4vla.platform.policy.grounding import ground

    model, processor = checkpoint.model.eval(), checkpoint.processor
    images = [question.image for question, _ in asked]
    words = [processor.question("point", question.label) for question, _ in asked]
    answers = ground(model, processor, images, words)
    with torch.inference_mode():
        hidden, tokens = model.planner.read(processor.encode_questions(images, words))
        pointed = place_of_peak(model.planner.where(hidden, tokens)) * images[0].shape[0]
    hits = []
    for row, (question, note) in enumerate(asked):
        spatial = answers[row].spatial
        places = spatial.points if spatial else ()
        said = bool(places) and on_object(places[0], question.label, note)
        hits.append((said, on_object(pointed[row, :2].tolist(), question.label, note)))
    return hits


def on_object(point, name, note) -> bool:
    """Say whether a point of the picture lies on the named object."""
    side = note.mask.shape[0]
    column, row = (min(max(int(part / 4), 0), side - 1) for part in point)
    return bool(note.mask[row, column] == list(note.boxes).index(name) + 1)


if __name__ == "__main__":
    main()
