"""At the published names and shapes every tensor is accounted for, and every preset has the size it says."""

import pytest

from benchmarks.import_coverage import coverage, eyes, published_shapes, query_transformer
from st4vla.platform.policy.config import PolicyConfig
from st4vla.platform.policy.sizes import parameter_counts


@pytest.mark.parametrize(("generation", "layers"), [("flat", 1), ("nested", 16)])
def test_every_tensor_of_the_published_size_finds_its_place(tmp_path, generation, layers):
    assert coverage(tmp_path, generation, True, layers) == 100.0


def test_the_published_list_holds_what_the_paper_counts():
    assert sum(count(shape) for _, shape in query_transformer()) == 8_710_656
    blocks = sum(count(shape) for name, shape in eyes() if ".blocks." in name)
    assert blocks == 21_302_784
    assert sum(count(shape) for name, shape in published_shapes(output_layer=False).items()) == 3_872_703_111


def count(shape: tuple[int, ...]) -> int:
    total = 1
    for side in shape:
        total *= side
    return total


@pytest.mark.parametrize(
    ("preset", "part", "published"),
    [
        ("st4vla_4b", "planner", 3.75e9),
        ("st4vla_4b", "query_transformer", 8.71e6),
        ("st4vla_4b", "action_expert", 86.5e6),
        ("st4vla_4b", "dino", 22.06e6),
        ("st4vla_qwen3vl_4b", "planner", 4.44e9),
        ("st4vla_qwen3vl_4b", "action_expert", 86.5e6),
    ],
)
def test_a_presets_modules_have_the_published_sizes(preset, part, published):
    assert parameter_counts(PolicyConfig.preset(preset))[part] == pytest.approx(published, rel=0.002)


def test_the_small_presets_have_their_sizes():
    assert parameter_counts(PolicyConfig.preset("tiny"))["total"] == 4_306_423
    assert parameter_counts(PolicyConfig.preset("small"))["total"] == pytest.approx(0.30e9, rel=0.02)
