"""DINOv2 written out: the same weights from a seed and the same numbers as transformers' model."""

import pytest
import torch
from transformers import Dinov2Config, Dinov2Model

from st4vla.platform.policy.config import VisionConfig
from st4vla.platform.policy.dino import Dino

SIZES = VisionConfig(width=48, layers=3, heads=4, patch_size=14, position_px=70, initializer_range=0.05)
# Older releases name the parts of the attention otherwise.
OLDER = {
    "attention.attention.query": "attention.q_proj",
    "attention.attention.key": "attention.k_proj",
    "attention.attention.value": "attention.v_proj",
    "attention.output.dense": "attention.o_proj",
}


@pytest.fixture
def theirs() -> Dinov2Model:
    torch.manual_seed(3)
    shape = Dinov2Config(
        hidden_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        patch_size=14,
        image_size=70,
        initializer_range=0.05,
    )
    return Dinov2Model(shape).eval()


def renamed(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    for old, new in OLDER.items():
        weights = {name.replace(old, new): tensor for name, tensor in weights.items()}
    return weights


def test_a_seed_gives_the_weights_it_gave_when_the_model_was_transformers_own(theirs):
    torch.manual_seed(3)
    ours = Dino(SIZES).state_dict()
    theirs_by_name = renamed(theirs.state_dict())
    assert list(ours) == list(theirs_by_name)
    if "attention.query" not in "".join(theirs.state_dict()):
        assert all(torch.equal(ours[name], tensor) for name, tensor in theirs_by_name.items())


@pytest.mark.parametrize("size", [70, 126])
def test_its_patch_tokens_are_those_of_transformers_at_the_learned_size_and_at_another(theirs, size):
    ours = Dino(SIZES).eval()
    scales = {name: torch.rand(48) for name in ours.state_dict() if "lambda1" in name}
    ours.load_state_dict(renamed(theirs.state_dict()) | scales)
    for name, values in scales.items():
        theirs.get_parameter(name).data = values
    pixels = torch.randn(2, 3, size, size)
    with torch.inference_mode():
        expected = theirs(pixels).last_hidden_state[:, 1:]
        assert torch.allclose(ours(pixels), expected, atol=1e-5)


def test_an_offset_moves_resampled_positions_as_dinov2s_own_code_does():
    torch.manual_seed(0)
    ours = Dino(VisionConfig(width=48, layers=1, heads=4, patch_size=14, position_px=70, position_offset=0.1))
    learned = ours.embeddings.position_embeddings
    square = learned[:, 1:].view(1, 5, 5, 48).permute(0, 3, 1, 2)
    moved = torch.nn.functional.interpolate(square, scale_factor=(9.1 / 5, 9.1 / 5), mode="bicubic")
    assert torch.equal(ours.embeddings.positions(9)[:, 1:], moved.flatten(2).transpose(1, 2))
    assert torch.equal(ours.embeddings.positions(9)[:, :1], learned[:, :1])
