"""An imported policy gives the numbers of the public code's mathematics, stage by stage, to 1e-4."""

import copy
import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from st4vla.platform.checkpoint import load_checkpoint
from st4vla.platform.contracts import Observation
from st4vla.platform.policy.inference import St4vlaPolicy
from st4vla.platform.published.bring_in import bring_in

INSTRUCTIONS = ["Pick UP the red cube.", "put  it", "Move the blue can near the Orange, then stop"]
CLOSE = {"atol": 1e-4, "rtol": 0}
STEPS, GUIDANCE = 10, 1.5


@dataclasses.dataclass
class Case:
    """What both sides are given, and what the original made of it."""

    original: Any
    views: list[list[Image.Image]]
    inputs: dict[str, torch.Tensor]
    images: dict[str, torch.Tensor]
    noise: torch.Tensor
    raw: list[list[np.ndarray]]

    def observations(self) -> list[Observation]:
        names = ("third_person", "wrist")
        return [
            Observation(dict(zip(names, row, strict=False)), None, words)
            for row, words in zip(self.raw, INSTRUCTIONS, strict=True)
        ]


def original_inputs(checkpoint: Any, views: list[list[Image.Image]], prompt: str) -> tuple[dict, dict]:
    """Prepare text and pixels as the public code does: lower-cased into the prompt, Qwen's own image processor."""
    tokenizer = checkpoint.processor.tokenizer
    rows = []
    for row, words in zip(views, INSTRUCTIONS, strict=True):
        said = prompt.replace("{instruction}", words.lower())
        content = [{"type": "image"} for _ in row] + [{"type": "text", "text": said}]
        text = tokenizer.apply_chat_template(
            [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
        )
        rows.append(
            tokenizer(text.replace("<|image_pad|>", "<|image_pad|>" * 16), add_special_tokens=False)["input_ids"]
        )
    longest, pad = max(map(len, rows)), tokenizer.convert_tokens_to_ids("<|endoftext|>")
    ids = torch.tensor([[pad] * (longest - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
    processor = Qwen2VLImageProcessorPil(
        image_mean=[0.48145466, 0.4578275, 0.40821073], image_std=[0.26862954, 0.26130258, 0.27577711], min_pixels=784
    )
    seen = processor([view for row in views for view in row], return_tensors="pt")
    images = {"pixel_values": seen["pixel_values"], "image_grid_thw": seen["image_grid_thw"]}
    return {"input_ids": ids, "attention_mask": mask}, images


def make_case(original: Any, checkpoint: Any, prompt: str, views: int) -> Case:
    rng = np.random.default_rng(0)
    raw = [[rng.integers(0, 256, (120, 160, 3), dtype=np.uint8) for _ in range(views)] for _ in INSTRUCTIONS]
    # Frames of sharp noise would hide a wrong resampling; these have shape.
    raw = [[np.array(Image.fromarray(i[:9, :12]).resize((160, 120))) for i in row] for row in raw]
    seen = [[Image.fromarray(image).resize((112, 112)) for image in row] for row in raw]
    noise = torch.randn(len(raw), 4, 7, generator=torch.Generator().manual_seed(1))
    return Case(original, seen, *original_inputs(checkpoint, seen, prompt), noise, raw)


def with_semantics(model: Any, **changed: Any) -> Any:
    """Give the same weights under other semantics."""
    other = copy.copy(model)
    semantics = dataclasses.replace(model.config.semantics, **changed)
    other.config = dataclasses.replace(model.config, semantics=semantics)
    return other


@pytest.fixture(scope="module")
def checkpoint(imported: Any) -> Any:
    return load_checkpoint(imported)


@pytest.fixture(scope="module")
def case(original: Any, checkpoint: Any) -> Case:
    return make_case(original, checkpoint, checkpoint.model.config.prompt.action, views=1)


@pytest.fixture(scope="module")
def batch(checkpoint: Any, case: Case) -> dict[str, torch.Tensor]:
    return checkpoint.processor.encode_observations(case.observations())


def test_the_text_is_the_public_codes_token_for_token(case, batch):
    assert (batch["attention_mask"] == 0).any()
    assert torch.equal(batch["input_ids"], case.inputs["input_ids"])
    assert torch.equal(batch["attention_mask"], case.inputs["attention_mask"])


@torch.no_grad()
def test_the_plan_is_the_planners_last_hidden_layer_padding_included(case, batch, checkpoint):
    plan, _ = checkpoint.model.plan(batch)
    torch.testing.assert_close(plan, case.original.hidden(case.inputs, case.images)[-1], **CLOSE)


@torch.no_grad()
def test_the_frame_tokens_are_dinov2s_with_its_own_resampling_of_positions(case, batch, checkpoint):
    tokens = checkpoint.model.frame_encoder(batch["images"])
    frames = case.original.dino_pro(case.original.dino_encoder([view for row in case.views for view in row]))
    torch.testing.assert_close(tokens, frames, **CLOSE)
    checkpoint.model.frame_encoder.dino.embeddings.offset = 0.0
    moved = checkpoint.model.frame_encoder(batch["images"])
    checkpoint.model.frame_encoder.dino.embeddings.offset = 0.1
    assert (moved - frames).abs().max() > 1e-2


@torch.no_grad()
def test_the_condition_is_the_query_transformers_that_sees_padding(case, batch, checkpoint):
    condition = checkpoint.model.condition(*checkpoint.model.plan(batch), batch["images"])
    expected = case.original.condition(case.original.hidden(case.inputs, case.images), case.views)
    torch.testing.assert_close(condition, expected, **CLOSE)


@torch.no_grad()
def test_with_our_own_semantics_no_query_sees_padding(case, batch, checkpoint):
    model = with_semantics(checkpoint.model, attend_padding=False)
    condition = model.condition(*model.plan(batch), batch["images"])
    hidden = case.original.hidden(case.inputs, case.images)
    blind = case.original.condition(hidden, case.views, case.inputs["attention_mask"])
    torch.testing.assert_close(condition, blind, **CLOSE)
    assert (blind - case.original.condition(hidden, case.views)).abs().max() > 1e-2


@torch.no_grad()
def test_the_denoiser_predicts_the_same_noise(case, checkpoint):
    steps = torch.tensor([0, 37, 99])
    condition = torch.randn(3, 6, 64, generator=torch.Generator().manual_seed(2))
    ours = checkpoint.model.action_expert(case.noise, steps, condition)
    torch.testing.assert_close(ours, case.original.action_model.net(case.noise, steps, condition), **CLOSE)


@pytest.mark.parametrize("steps", [4, 5, 10, 20])
@torch.no_grad()
def test_ddim_with_guidance_ends_where_the_respaced_schedule_does(case, checkpoint, steps):
    condition = torch.randn(3, 6, 64, generator=torch.Generator().manual_seed(3))
    expected = case.original.sample(condition, case.noise, steps, GUIDANCE)[-1]
    ours = checkpoint.model.sample(condition, case.noise, steps, GUIDANCE)
    scale = expected.abs().max()
    torch.testing.assert_close(ours / scale, expected / scale, **CLOSE)


@torch.no_grad()
def test_each_row_acts_as_the_public_code_acts_on_it_alone(case, checkpoint, reference, monkeypatch):
    """As published policies are evaluated: one observation a call, so without padding."""
    policy = St4vlaPolicy(checkpoint.model, checkpoint.processor)
    monkeypatch.setattr("st4vla.platform.policy.inference.draw_noise", lambda key, shape: case.noise[key[1]].numpy())
    chunks = policy.act(case.observations(), ["a", "b", "c"], [(0, 0), (0, 1), (0, 2)])
    values = checkpoint.processor.statistics["oxe_bridge"].action
    numbers = {"q01": values.q01, "q99": values.q99, "mask": [True] * 6 + [False]}
    for row, chunk in enumerate(chunks):
        length = int(case.inputs["attention_mask"][row].sum())
        alone = {name: tensor[row : row + 1, -length:] for name, tensor in case.inputs.items()}
        images = {
            "pixel_values": case.images["pixel_values"][row * 64 : row * 64 + 64],
            "image_grid_thw": case.images["image_grid_thw"][row : row + 1],
        }
        condition = case.original.condition(case.original.hidden(alone, images), case.views[row : row + 1])
        sampled = case.original.sample(condition, case.noise[row : row + 1], STEPS, GUIDANCE)[-1][0].numpy()
        inside = np.abs(sampled[:, 6] - 0.5) > 1e-3
        expected = reference.unnormalize(sampled, numbers)
        np.testing.assert_allclose(chunk.actions[inside], expected[inside], atol=1e-4, rtol=0)


def test_actions_are_scaled_back_as_published_at_the_edges_too(reference, checkpoint):
    rng = np.random.default_rng(0)
    normalised = rng.uniform(-2, 2, (500, 7)).astype(np.float32)
    normalised[:4, 6] = [0.5, 0.49999, -3, 3]
    stats = checkpoint.processor.statistics["oxe_bridge"].action
    numbers = {"q01": stats.q01, "q99": stats.q99, "mask": [True] * 6 + [False]}
    ours = checkpoint.processor.normalizer("oxe_bridge").unnormalize_action(normalised)
    np.testing.assert_allclose(ours, reference.unnormalize(normalised.copy(), numbers), atol=1e-6)


@torch.no_grad()
def test_a_query_transformer_of_several_layers_reads_as_many_hidden_layers(
    tmp_path, make_original, published_state, write_run, options
):
    original = make_original(read=(1, 4))
    run = write_run(tmp_path / "run", published_state(original), read=(1, 4), views=2)
    checkpoint = load_checkpoint(bring_in(str(run), tmp_path / "ours", options))
    assert checkpoint.model.config.planner.plan_layers == (1, 2, 3)
    case = make_case(original, checkpoint, checkpoint.model.config.prompt.action, views=2)
    batch = checkpoint.processor.encode_observations(case.observations())
    condition = checkpoint.model.condition(*checkpoint.model.plan(batch), batch["images"])
    expected = original.condition(original.hidden(case.inputs, case.images), case.views)
    torch.testing.assert_close(condition, expected, **CLOSE)


def test_the_action_losss_gradient_reaches_the_planner_whole_as_published_and_scaled_in_ours(checkpoint, batch):
    query, frames = checkpoint.model.query_transformer, torch.zeros(3, 64, 64)
    grads = {}
    for scale in (checkpoint.model.config.query.grad_scale, 0.5):
        plan = torch.ones(3, batch["input_ids"].shape[1], 64, requires_grad=True)
        query.grad_scale = scale
        query(plan, batch["attention_mask"], frames).square().sum().backward()
        grads[scale] = plan.grad
    query.grad_scale = 1.0
    torch.testing.assert_close(grads[1.0] * 0.5, grads[0.5])
