"""Statistics are exact, and scaling by them is undone exactly."""

import json
from pathlib import Path

import numpy as np
import pytest

from st4vla.platform.data.statistics import (
    FIELDS,
    EmbodimentStatistics,
    Normalizer,
    Slice,
    Statistics,
    read_statistics,
    statistics_to_text,
)
from st4vla.platform.errors import ConfigError, DataError

ROWS = np.stack([np.arange(101.0), np.full(101, 3.0)], axis=1)


def arm(rows: np.ndarray, state: np.ndarray | None = None) -> EmbodimentStatistics:
    return EmbodimentStatistics("arm", Statistics.of(rows), None if state is None else Statistics.of(state))


def test_the_numbers_of_0_to_100() -> None:
    stats = Statistics.of(ROWS)
    assert stats.mean.tolist() == [50, 3] and stats.min.tolist() == [0, 3] and stats.max.tolist() == [100, 3]
    assert stats.q01.tolist() == [1, 3] and stats.q99.tolist() == [99, 3]
    assert stats.std[0] == pytest.approx(29.154759) and stats.std[1] == 0 and stats.count == 101


def test_merged_mean_and_std_are_those_of_all_rows() -> None:
    rows = np.random.default_rng(0).normal(size=(50, 3))
    merged, whole = Statistics.merge([Statistics.of(rows[:10]), Statistics.of(rows[10:])]), Statistics.of(rows)
    for name in ("mean", "std", "min", "max"):
        np.testing.assert_allclose(getattr(merged, name), getattr(whole, name))
    assert merged.count == 50 and (merged.q99 >= whole.q99 - 1e-9).all()


def test_q99_maps_1_to_minus_1_and_99_to_plus_1_and_clips_beyond() -> None:
    scale = Normalizer(arm(ROWS))
    actions = np.array([[1, 3], [50, 3], [99, 3], [100, 3]], np.float32)
    assert scale.normalize_action(actions).tolist() == [[-1, 0], [0, 0], [1, 0], [1, 0]]


def test_a_constant_dimension_gives_0_and_comes_back_as_the_constant() -> None:
    scale = Normalizer(arm(ROWS))
    assert scale.unnormalize_action(np.array([0.0, 0.7])).tolist() == [50, 3]


def test_the_way_back_is_the_inverse_inside_the_range() -> None:
    rows = np.random.default_rng(1).normal(size=(200, 7)) * 0.02
    rows[:, 6] = rows[:, 6] > 0
    scale = Normalizer(arm(rows, state=rows))
    inside = rows[((rows >= np.quantile(rows, 0.01, axis=0)) & (rows <= np.quantile(rows, 0.99, axis=0))).all(axis=1)]
    np.testing.assert_allclose(scale.unnormalize_action(scale.normalize_action(inside)), inside, atol=1e-7)
    np.testing.assert_allclose(scale.unnormalize_state(scale.normalize_state(inside)), inside, atol=1e-7)


def test_the_gripper_of_an_arm_is_binary_by_default() -> None:
    rows = np.random.default_rng(2).normal(size=(50, 7))
    scale = Normalizer(arm(rows))
    actions = np.zeros((2, 7), np.float32)
    actions[:, 6] = [0.2, 0.8]
    assert scale.normalize_action(actions)[:, 6].tolist() == [-1, 1]
    actions[:, 6] = [-0.1, 0.1]
    assert scale.unnormalize_action(actions)[:, 6].tolist() == [0, 1]


@pytest.mark.parametrize(
    ("mode", "value", "scaled"),
    [
        ("min_max", 75, 0.5),
        ("mean_std", 50 + 29.154759, 1.0),
        ("identity", 12, 12),
        ("binary", 0.6, 1),
        ("q99", 74.5, 0.5),
    ],
)
def test_each_mode_by_one_number(mode: str, value: float, scaled: float) -> None:
    slices = (Slice("x", 0, 1, mode), Slice("y", 1, 2, "identity"))  # type: ignore[arg-type]
    scale = Normalizer(EmbodimentStatistics("one", Statistics.of(ROWS), action_slices=slices))
    assert scale.normalize_action(np.array([value, 0]))[0] == pytest.approx(scaled)


def test_leading_dimensions_are_kept() -> None:
    assert Normalizer(arm(ROWS)).normalize_action(np.zeros((4, 5, 2), np.float32)).shape == (4, 5, 2)


def test_another_width_is_refused_with_both_numbers_and_the_remedy() -> None:
    with pytest.raises(DataError, match=r"shape \(3, 8\) .* 'arm' have width 2; .*policy.action_dim=2"):
        Normalizer(arm(ROWS)).normalize_action(np.zeros((3, 8)))


def test_slices_must_cover_every_dimension_once() -> None:
    with pytest.raises(ConfigError, match=r"cover dimensions \[0\]; expected each of 0..1 once"):
        EmbodimentStatistics("one", Statistics.of(ROWS), action_slices=(Slice("x", 0, 1, "q99"),))


def test_statistics_json_comes_back_with_its_slices(tmp_path: Path) -> None:
    path = tmp_path / "statistics.json"
    slices = (Slice("x", 0, 1, "min_max"), Slice("y", 1, 2, "identity"))
    path.write_text(
        statistics_to_text([EmbodimentStatistics("panda", Statistics.of(ROWS), Statistics.of(ROWS), slices)])
    )
    read = read_statistics(path)["panda"]
    assert read.action_slices == slices and read.state is not None and read.state.count == 101
    np.testing.assert_array_equal(read.action.q99, [99, 3])


def test_the_dataset_statistics_of_internvla_m1_are_read(tmp_path: Path) -> None:
    numbers = {name: [float(value)] * 7 for name, value in zip(FIELDS, range(6), strict=True)}
    content = {"franka": {"action": numbers | {"mask": [True] * 6 + [False]}, "num_transitions": 10}}
    path = tmp_path / "dataset_statistics.json"
    path.write_text(json.dumps(content))
    read = read_statistics(path)["franka"]
    assert read.action.width == 7 and read.action.q99[0] == 5 and read.state is None


def test_statistics_without_a_number_are_refused_by_its_name(tmp_path: Path) -> None:
    path = tmp_path / "statistics.json"
    path.write_text(json.dumps({"panda": {"action": {"mean": [0.0], "min": [0.0], "max": [1.0]}}}))
    with pytest.raises(DataError, match=r"\[panda\], action, lacks std"):
        read_statistics(path)
