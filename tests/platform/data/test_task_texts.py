"""Instructions are found by the numbers that a dataset gave its tasks, which may have gaps."""

import json
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from st4vla.platform.data.episode import Episode
from st4vla.platform.data.lerobot_reader import open_dataset
from st4vla.platform.data.lerobot_writer import LeRobotWriter, WriterConfig
from st4vla.platform.errors import DataError

# Five episodes of five frames, put in bowl 0, 1, 0, 1, 0.
EVEN, ODD = "put the red cube in bowl 0", "put the red cube in bowl 1"


def test_texts_of_a_filtered_dataset_are_looked_up_by_task_index(dataset_folder: Path, version: str) -> None:
    renumber(dataset_folder, version, {3: EVEN, 1: ODD})
    dataset = open_dataset(dataset_folder)
    assert [dataset.instruction(index) for index in (0, 5, 10, 24)] == [EVEN, ODD, EVEN, EVEN]
    assert dataset.meta.tasks == {3: EVEN, 1: ODD}


def test_a_frame_whose_number_has_no_text_takes_the_episodes(dataset_folder: Path, version: str) -> None:
    renumber(dataset_folder, version, {3: EVEN, 1: ODD})
    write_tasks(dataset_folder, version, {1: ODD})
    assert open_dataset(dataset_folder).instruction(0) == EVEN


def test_a_frame_without_any_text_is_named_with_the_tasks_file_and_its_number(
    dataset_folder: Path, version: str
) -> None:
    renumber(dataset_folder, version, {3: EVEN, 1: ODD})
    write_tasks(dataset_folder, version, {1: ODD})
    forget_episodes_tasks(dataset_folder)
    dataset = open_dataset(dataset_folder)
    assert dataset.instruction(5) == ODD
    with pytest.raises(DataError, match=r"meta/tasks\.\w+ has no text of task_index 3, and episode 0 names none"):
        dataset.instruction(0)


def test_an_appended_episode_takes_the_number_its_text_has_or_the_next(
    dataset_folder: Path, version: str, make_episode: Callable[..., Episode]
) -> None:
    renumber(dataset_folder, version, {3: EVEN, 1: ODD})
    with LeRobotWriter(dataset_folder, WriterConfig(formats=(version,), episodes_per_file=2)) as writer:
        writer.add(make_episode(5))
        writer.add(Episode(**{**vars(make_episode(6)), "instruction": "wait"}))
    dataset = open_dataset(dataset_folder)
    assert dataset.meta.tasks == {3: EVEN, 1: ODD, 4: "wait"}
    assert dataset.columns.task_index[[25, 30]].tolist() == [1, 4]


def renumber(folder: Path, version: str, tasks: dict[int, str]) -> None:
    """Give the two tasks, 0 and 1, the numbers of `tasks` in its order."""
    for path in (folder / "data").rglob("*.parquet"):
        table = pq.read_table(path)
        numbers = [list(tasks)[number] for number in table["task_index"].to_pylist()]
        pq.write_table(table.set_column(table.schema.get_field_index("task_index"), "task_index", [numbers]), path)
    write_tasks(folder, version, tasks)


def write_tasks(folder: Path, version: str, tasks: dict[int, str]) -> None:
    """Write the table of tasks."""
    if version == "v3.0":
        table = pd.DataFrame({"task_index": list(tasks)}, index=pd.Index(list(tasks.values()), name="task"))
        table.to_parquet(folder / "meta" / "tasks.parquet")
        return
    rows = [json.dumps({"task_index": number, "task": text}) for number, text in tasks.items()]
    (folder / "meta" / "tasks.jsonl").write_text("\n".join(rows) + "\n")


def forget_episodes_tasks(folder: Path) -> None:
    """Empty the texts that episodes keep themselves."""
    lines = folder / "meta" / "episodes.jsonl"
    if lines.exists():
        rows = [json.loads(line) | {"tasks": []} for line in lines.read_text().splitlines()]
        lines.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for path in (folder / "meta").rglob("file-*.parquet"):
        table = pq.read_table(path)
        empty = pa.array([[]] * len(table), pa.list_(pa.string()))
        pq.write_table(table.set_column(table.schema.get_field_index("tasks"), "tasks", empty), path)
