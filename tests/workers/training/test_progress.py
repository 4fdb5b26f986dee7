"""What a run tells is recorded once, with the pictures of its validations."""

import logging
from pathlib import Path

from st4vla.platform.train.config import TrainConfig
from st4vla.workers.training.progress import TrainProgress, read_rows

CONFIG = TrainConfig.from_mapping(
    {
        "stage": "grounding",
        "steps": 4,
        "optimiser": {"learning_rates": {"others": 0.1}},
        "batch": {"robot": 0, "grounding": 4},
    }
)


class Record:
    """A tracker that remembers what it was told."""

    def __init__(self) -> None:
        self.rows: list[tuple[dict, int]] = []
        self.pictures: list[tuple[str, str]] = []

    def metrics(self, values, step):
        self.rows.append((values, step))

    def artifact(self, path, folder):
        self.pictures.append((path.name, folder))


def test_a_validation_brings_its_pictures_and_a_repeated_row_brings_nothing(tmp_path: Path):
    (tmp_path / "drawings").mkdir()
    for name in ("answers_0000002.png", "actions_0000002.png", "answers_0000004.png"):
        (tmp_path / "drawings" / name).write_bytes(b"")
    record = Record()
    progress = TrainProgress(CONFIG, record, tmp_path)
    progress.add({"step": 2.0, "loss/total": 1.0, "loss/grounding/of/a": 2.0, "step_s": 0.1})
    assert record.pictures == []
    for _ in range(2):
        progress.add({"step": 2.0, "validation/box_iou": 0.5})
    assert record.pictures == [("actions_0000002.png", "drawings"), ("answers_0000002.png", "drawings")]
    assert record.rows[0] == ({"loss/total": 1.0, "loss/grounding/of/a": 2.0, "step_s": 0.1}, 2)
    assert [row["step"] for row in read_rows(tmp_path)] == [2.0, 2.0]


def test_a_jump_and_what_could_not_be_read_are_said_and_a_row_without_news_is_not(tmp_path: Path, caplog):
    caplog.set_level(logging.INFO)
    progress = TrainProgress(CONFIG, Record(), tmp_path)
    progress.add({"step": 1.0, "checkpoint/whole_s": 0.2, "checkpoint/blocked_s": 0.1})
    assert caplog.messages == []
    progress.add({"step": 2.0, "loss/total": 9.0, "alarm/loss": 7.5, "unreadable/own": 3.0, "step_s": 0.1})
    assert caplog.messages == [
        "step 2: loss jumped to 7.5 times its running mean",
        "step 2: loss 9.000, 3 unreadable in own",
    ]
