"""The pictures hold what the annotations say."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from st4vla.platform.contracts import FrameAnnotation
from st4vla.platform.data.draw import COLORS, draw_frame
from st4vla.platform.data.lerobot_reader import open_dataset
from st4vla.platform.data.show import main
from st4vla.platform.errors import ConfigError


def test_a_box_is_drawn_where_it_is_enlarged_threefold() -> None:
    note = FrameAnnotation({"red cube": (10, 10, 20, 20)}, {"red cube": (15, 15)}, "red cube", "", (), "")
    picture = np.asarray(draw_frame(np.zeros((32, 32, 3), np.uint8), note, scale=3))
    assert picture.shape == (96, 96, 3)
    assert tuple(picture[59, 45]) == COLORS[0] and tuple(picture[45, 45]) == COLORS[0]
    assert tuple(picture[90, 90]) == (0, 0, 0)


def test_the_command_writes_a_sheet_per_episode_and_a_page(dataset_folder: Path, tmp_path: Path, capsys) -> None:  # noqa: ANN001
    main({"dataset": str(dataset_folder), "out": str(tmp_path / "out"), "episodes": 2, "frames": 3, "cameras": []})
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["episode_000000.png", "episode_000004.png", "index.html"]
    assert "put the red cube in bowl 0" in (tmp_path / "out" / "index.html").read_text()
    assert Image.open(tmp_path / "out" / "episode_000000.png").width > 3 * 320
    printed = capsys.readouterr().out
    assert "episodes" in printed and open_dataset(dataset_folder).digest[:16] in printed


def test_a_missing_dataset_is_asked_for() -> None:
    with pytest.raises(ConfigError, match="st4vla show FOLDER"):
        main({"dataset": None, "out": "x", "episodes": 1, "frames": 1, "cameras": []})
