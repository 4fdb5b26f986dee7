"""Batches: what stands where, and what is refused."""

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image

from st4vla.platform.contracts import GroundingSample, Observation, Spatial
from st4vla.platform.errors import ConfigError, DataError, PolicyError
from st4vla.platform.policy.processor import Processor
from st4vla.platform.policy.prompt import action_prompt, answer, coordinate_space


def test_views_stand_in_the_order_of_the_config(processor, observations):
    batch = processor.encode_observations(observations[:2])
    assert batch["images"].shape == (2, 2, 3, 128, 128)
    assert np.array_equal(batch["images"][1, 1].permute(1, 2, 0), observations[1].images["wrist"])


def test_rows_are_padded_on_the_left(processor, observations):
    batch = processor.encode_observations(observations[:2])
    assert batch["attention_mask"][1].tolist() == sorted(batch["attention_mask"][1].tolist())
    assert batch["input_ids"][1, 0] == processor.token_ids["pad"]


def test_the_planner_reads_sixteen_image_tokens_of_one_view(processor, observations):
    batch = processor.encode_observations(observations[:1])
    assert int((batch["input_ids"] == processor.token_ids["image"]).sum()) == 16


def test_an_image_spreads_over_rows_and_columns_and_text_goes_on_after_its_longer_side(processor):
    turn = processor._turn("hi", 1)
    start = int(np.argmax(turn.ids == processor.token_ids["image"]))
    assert turn.positions[:, start + 5].tolist() == [start, start + 1, start + 1]
    assert turn.positions[:, start + 16].tolist() == [start + 4] * 3


def test_actions_are_normalised_by_their_own_embodiment(processor, action_samples):
    batch = processor.encode_actions(action_samples)
    back = processor.normalizer("tabletop_panda").unnormalize_action(batch["actions"].numpy())
    np.testing.assert_allclose(
        back[..., :3], np.clip([s.actions for s in action_samples], -0.049, 0.049)[..., :3], atol=1e-6
    )
    assert batch["is_pad"][3].tolist() == [False] * 5 + [True] * 3


def test_an_image_of_another_size_is_resized_as_pil_does(processor, make_image):
    big = make_image(0, 200)
    expected = np.asarray(Image.fromarray(big).resize((128, 128), Image.Resampling.BICUBIC))
    assert np.array_equal(processor.view(big).transpose(1, 2, 0), expected)


def test_dense_targets_share_a_name_among_its_words(processor, point_samples, config):
    batch = processor.encode_grounding(point_samples[:1])
    words = ["", *config.planner.dense.words]
    target = {words[i]: float(v) for i, v in enumerate(batch["dense_targets"][0, 1]) if v}
    assert target == {"red": 0.5, "cube": 0.5}
    assert batch["dense_labels"][0, 4:8, 20:24].unique().tolist() == [1]


def test_the_cells_of_a_destination_are_those_of_its_name_and_none_without_one(processor, point_samples):
    goes = dataclasses.replace(point_samples[0], destination="red cube")
    cells = processor.encode_grounding([goes, point_samples[1]])["goal_cells"]
    assert cells[0, 4:8, 20:24].unique().tolist() == [1] and cells[1].sum() == 0


def test_an_object_without_a_known_word_is_left_out_of_the_dense_loss(processor, point_samples):
    strange = dataclasses.replace(point_samples[0], dense_names=("gizmo",))
    assert processor.encode_grounding([strange])["dense_labels"][0, 4, 20] == -1


def test_questions_without_dense_labels_make_a_batch_without_them(processor, point_samples):
    plain = dataclasses.replace(point_samples[0], dense_labels=None)
    assert "dense_labels" not in processor.encode_grounding([plain])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": {"wrist": np.zeros((128, 128, 3), np.uint8)}}, "Camera 'third_person' is missing"),
        ({"state": None}, r"The state is None; this policy needs \[7\]"),
        ({"state": np.zeros(5, np.float32)}, r"The state is \[5\]"),
        ({"instruction": "  "}, "The instruction is empty"),
    ],
)
def test_an_observation_that_lacks_something_is_refused(processor, observations, change, message):
    with pytest.raises(PolicyError, match=message):
        processor.encode_observations([dataclasses.replace(observations[0], **change)])


def test_an_image_of_floats_is_refused(processor, observations):
    floats = {name: view.astype(np.float32) for name, view in observations[0].images.items()}
    with pytest.raises(PolicyError, match=r"An image is float32 \[128, 128, 3\]; expected uint8"):
        processor.encode_observations([Observation(floats, observations[0].state, "go")])


def test_an_unknown_embodiment_is_refused_with_those_known(processor, action_samples):
    with pytest.raises(PolicyError, match="No statistics for 'franka' .there are: tabletop_panda."):
        processor.encode_actions([dataclasses.replace(action_samples[0], statistics_key="franka")])


def test_a_tokenizer_larger_than_the_models_vocabulary_is_refused(config, processor):
    text = dataclasses.replace(config.planner.text, vocab_size=100)
    small = dataclasses.replace(config, planner=dataclasses.replace(config.planner, text=text))
    with pytest.raises(ConfigError, match="vocab_size is 100 but the tokenizer has"):
        Processor(small, processor.tokenizer)


def test_a_sample_without_its_answer_is_refused(config, make_image):
    sample = GroundingSample(make_image(0), "box", "red cube", Spatial("red cube"))
    with pytest.raises(DataError, match="A box sample about 'red cube' has no such answer"):
        answer(sample, coordinate_space(config.planner, 128, 128, 128), config.prompt)


def test_qwen2_5_speaks_pixels_of_the_resized_image_and_qwen3_thousandths(config):
    pixels = dataclasses.replace(config.planner, kind="qwen2_5_vl")
    assert coordinate_space(pixels, 224, 640, 480).speak((320, 240)) == (112, 112)
    assert coordinate_space(config.planner, 224, 640, 480).speak((320, 240)) == (500, 500)


def test_the_spatial_prompt_is_worded_as_published(config):
    assert action_prompt("Pick up the  cube.", config.prompt, config.semantics) == (
        "Your task is Pick up the cube. Figure out how to execute it, then locate the key object needed."
    )


def test_the_target_is_asked_for_in_the_words_of_the_action_prompt(processor, config, point_samples):
    instruction = "Pick up the red cube"
    assert processor.question("target", instruction) == action_prompt(instruction, config.prompt, config.semantics)
    batch = processor.encode_grounding([dataclasses.replace(point_samples[0], kind="target", label=instruction)])
    assert processor.decode(batch["input_ids"][0, -10:].tolist()) == "<point>[[688, 188]]</point><|im_end|>"


def test_the_instruction_is_lower_cased_where_the_weights_were_used_so(config):
    semantics = dataclasses.replace(config.semantics, lowercase=True)
    assert action_prompt("Pick UP", config.prompt, semantics, acting=True).startswith("Your task is pick up.")
    assert action_prompt("Pick UP", config.prompt, semantics).startswith("Your task is Pick UP.")


def test_the_instruction_stays_as_it_is_where_the_weights_learned_it_so(config):
    semantics = dataclasses.replace(config.semantics, verbatim=True)
    assert action_prompt("Pick  up.", config.prompt, semantics).startswith("Your task is Pick  up.. Figure")
    assert action_prompt("Pick  up.", config.prompt, config.semantics).startswith("Your task is Pick up. Figure")


def test_equal_samples_make_equal_batches(processor, action_samples):
    first, second = processor.encode_actions(action_samples), processor.encode_actions(action_samples)
    assert all(torch.equal(first[name], second[name]) for name in first)
