"""System 2: its vision runs as transformers' own does, its answers are what the losses teach."""

import dataclasses

import numpy as np
import pytest
import torch
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from st4vla.platform.policy.config import PolicyConfig
from st4vla.platform.policy.layout import pad_left
from st4vla.platform.policy.model import St4vlaModel
from st4vla.platform.policy.planner import IGNORE, Planner
from st4vla.platform.policy.planner_build import image_constants
from st4vla.platform.policy.planner_vision import patchify
from st4vla.platform.policy.sizes import parameter_counts


@pytest.fixture(scope="module")
def qwen2_5(config, processor) -> Planner:
    """A Qwen2.5-VL planner of micro's size, whose 4 x 4 patches make windows of 2 x 2."""
    vision = dataclasses.replace(config.planner.vision, full_attention_layers=(3,), window_px=64, temporal_patch_size=2)
    torch.manual_seed(0)
    planner = dataclasses.replace(config.planner, kind="qwen2_5_vl", vision=vision)
    return Planner(planner, processor.token_ids).eval()


@pytest.fixture(scope="module")
def deep(config, processor) -> Planner:
    """A Qwen3-VL planner with deep features, two frames a patch, and positions learned for another grid."""
    vision = dataclasses.replace(config.planner.vision, deep_layers=(1, 2), position_grid=6, temporal_patch_size=2)
    torch.manual_seed(0)
    return Planner(dataclasses.replace(config.planner, vision=vision), processor.token_ids).eval()


@pytest.mark.parametrize("kind", ["qwen2_5_vl", "qwen3_vl"])
def test_patches_equal_those_of_transformers_image_processor(make_image, kind):
    images = np.stack([make_image(0, 224), make_image(1, 224)])
    mean, std = image_constants(kind)
    theirs = Qwen2VLImageProcessorPil(image_mean=mean, image_std=std, temporal_patch_size=1)
    expected = theirs(list(images), return_tensors="pt")["pixel_values"]
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2) / 255
    pixels = (pixels - torch.tensor(mean).view(1, 3, 1, 1)) / torch.tensor(std).view(1, 3, 1, 1)
    torch.testing.assert_close(patchify(pixels, 14, 2).flatten(0, 1), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("which", ["deep", "qwen2_5"])
def test_the_plan_equals_the_hidden_state_of_transformers_own_forward(request, processor, observations, which):
    planner = request.getfixturevalue(which)
    batch = processor.encode_observations(observations[:3])
    batch["images"] = batch["images"][:, :1]
    vision = planner.config.vision
    with torch.inference_mode():
        plan, _ = planner.read(batch)
        pixels = (batch["images"].flatten(0, 1) / 255 - planner.image_mean) / planner.image_std
        patches = patchify(pixels, vision.patch_size, vision.merge_size).view(3 * 64, 3, 1, 256)
        theirs = planner.vlm.model(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            mm_token_type_ids=(batch["input_ids"] == planner.image_token_id).int(),
            pixel_values=patches.expand(-1, -1, 2, -1).flatten(1),
            image_grid_thw=torch.tensor([[1, 8, 8]] * 3),
        ).last_hidden_state
    seen = batch["attention_mask"].bool()
    torch.testing.assert_close(plan[seen], theirs[seen], atol=1e-4, rtol=1e-4)


def test_left_padding_does_not_change_a_rows_plan(model, processor, observations):
    short, long = observations[1], observations[0]
    with torch.inference_mode():
        alone, _ = model.plan(processor.encode_observations([short]))
        beside, mask = model.plan(processor.encode_observations([short, long]))
    assert mask[0].sum() < mask[1].sum()
    torch.testing.assert_close(beside[0][mask[0].bool()], alone[0], atol=1e-5, rtol=1e-5)


def test_labels_stand_on_the_answer_and_its_end_only(processor, point_samples):
    batch = processor.encode_grounding(point_samples[:1])
    said = batch["labels"][0][batch["labels"][0] != IGNORE].tolist()
    assert processor.tokenizer.decode(said) == "<point>[[688, 188]]</point><|im_end|>"


def test_a_planner_trained_on_one_answer_says_it(config, processor, point_samples, make_image):
    torch.manual_seed(0)
    model = St4vlaModel(config, processor.token_ids)
    optimiser = torch.optim.AdamW(model.parameters(), 3e-3)
    batch = processor.encode_grounding(point_samples[:2])
    for _ in range(25):
        loss = model.grounding_loss(batch)["answer"]
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    questions = processor.encode_questions([make_image(0), make_image(1)], ["Point to the red cube."] * 2)
    rows = model.eval().planner.answer(questions, processor.token_ids["end"], 20)
    assert [processor.decode(row) for row in rows] == ["<point>[[688, 188]]</point>"] * 2


def test_greedy_decoding_with_a_cache_equals_reading_the_whole_answer_again(model, processor, make_image):
    batch = processor.encode_questions(
        [make_image(0), make_image(1)], ["Point to the red cube.", "What is the next step?"]
    )
    rows = model.planner.answer(batch, end_id=-1, most_tokens=4)
    prompts = [processor._turn(q, 1) for q in ("Point to the red cube.", "What is the next step?")]
    whole = pad_left([t.followed_by(r) for t, r in zip(prompts, rows, strict=True)], 0) | {"images": batch["images"]}
    with torch.inference_mode():
        hidden, _ = model.planner.read(whole)
        again = model.planner.vlm.lm_head(hidden[:, -5:-1]).argmax(-1)
    assert again.tolist() == rows


def test_the_published_size_has_the_published_parameter_counts():
    counts = parameter_counts(PolicyConfig.preset("st4vla_4b"))
    assert counts == {
        "planner": 3_754_622_976,
        "frame_encoder": 22_845_056,
        "query_transformer": 8_710_656,
        "action_expert": 86_518_279,
        "dino": 22_056_576,
        "total": 3_872_696_967,
    }


def test_tiny_fits_its_base_checkpoint_in_eight_megabytes_of_bf16():
    counts = parameter_counts(PolicyConfig.preset("tiny"))
    assert (counts["planner"] + counts["frame_encoder"]) * 2 < 8e6
