"""A tiny published run on disk, made from the reference alone, and the small files of the model it grew from."""

import importlib.util
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from st4vla.platform.policy.tokenizer import build_tokenizer

# Like Qwen's own: a system turn that the policy never asks for stands first.
TEMPLATE = (
    "{% for message in messages %}{% if loop.first and message.role != 'system' %}"
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
    "<|im_start|>{{ message.role }}\n"
    "{% for part in message.content %}{% if part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% else %}{{ part.text }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
BOX_PROMPT = (
    "Your task is {instruction}. To identify the key objects for your task. "
    "Locate their bounding boxes in [x1,y1,x2,y2] format."
)
PRIVATE_BASE = "/somewhere/share/manip_sys2_qwen25_3b_onevision/checkpoint-20000"
TEXT = dict(
    hidden_size=64,
    intermediate_size=128,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    vocab_size=512,
    max_position_embeddings=1024,
    rms_norm_eps=1e-6,
    initializer_range=0.2,
)
VISION = dict(
    depth=4,
    hidden_size=64,
    intermediate_size=96,
    num_heads=4,
    out_hidden_size=64,
    patch_size=14,
    spatial_merge_size=2,
    temporal_patch_size=2,
    window_size=56,
    fullatt_block_indexes=[1, 3],
)
# What a tiny run cannot say by a published name; the rest is read from its configuration.
SETTINGS = {
    "expert": {"layers": 2, "width": 64, "heads": 4},
    "vision": {"layers": 2, "width": 128, "heads": 2, "position_px": 154},
}


def load_reference() -> ModuleType:
    spec = importlib.util.spec_from_file_location("published_reference", Path(__file__).parent / "reference.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def reference() -> ModuleType:
    """The module `reference.py`."""
    return load_reference()


@pytest.fixture(scope="session")
def base_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small files of a tiny Qwen2.5-VL, laid out as its public repository is."""
    folder = tmp_path_factory.mktemp("base") / "Tiny-Qwen2.5-VL"
    tokenizer = build_tokenizer(
        ["Your task is", "pick up the red cube", "to identify the key objects", "assistant"], 500
    )
    tokenizer.save_pretrained(folder)
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": TEMPLATE}))
    ids = {
        n: tokenizer.convert_tokens_to_ids(f"<|{n}|>") for n in ("image_pad", "video_pad", "vision_start", "vision_end")
    }
    flat = {
        **TEXT,
        "model_type": "qwen2_5_vl",
        "hidden_act": "silu",
        "rope_theta": 1_000_000.0,
        "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]},
        "tie_word_embeddings": True,
        "use_sliding_window": False,
        "vision_config": {**VISION, "hidden_act": "silu", "in_chans": 3},
        "image_token_id": ids["image_pad"],
        "video_token_id": ids["video_pad"],
        "vision_start_token_id": ids["vision_start"],
        "vision_end_token_id": ids["vision_end"],
        "eos_token_id": tokenizer.convert_tokens_to_ids("<|im_end|>"),
        "pad_token_id": tokenizer.convert_tokens_to_ids("<|endoftext|>"),
    }
    (folder / "config.json").write_text(json.dumps(flat, indent=2))
    return folder


@pytest.fixture(scope="session")
def make_original(base_folder: Path, reference: ModuleType) -> Callable[..., Any]:
    """Give the reference model, seeded; keyword arguments change its sizes."""

    def make(**changed: Any) -> Any:
        torch.manual_seed(0)
        config = Qwen2_5_VLConfig.from_pretrained(base_folder)
        model = Qwen2_5_VLForConditionalGeneration(config).eval()
        original = reference.Original(replace(reference.Sizes(), **changed), model).eval()
        for name, parameter in original.named_parameters():
            if name.startswith("qwen_vl_interface") and parameter.ndim == 1:
                torch.nn.init.normal_(parameter, mean=float("norm" in name), std=0.2)
        return original

    return make


@pytest.fixture(scope="session")
def published_state() -> Callable[..., dict[str, torch.Tensor]]:
    """Give a model's state dict under the names of either generation."""

    def state(original: Any, generation: str = "nested") -> dict[str, torch.Tensor]:
        values = {name: tensor.detach().clone() for name, tensor in original.state_dict().items()}
        return values if generation == "nested" else {flat_name(name): tensor for name, tensor in values.items()}

    return state


def flat_name(name: str) -> str:
    """Name a tensor as transformers up to 4.51 did."""
    name = name.replace("qwen_vl_interface.model.model.visual.", "qwen_vl_interface.model.visual.")
    return name.replace("qwen_vl_interface.model.model.language_model.", "qwen_vl_interface.model.model.")


@pytest.fixture(scope="session")
def write_run() -> Callable[..., Path]:
    """Write a published run folder."""

    def write(folder: Path, state: dict[str, torch.Tensor], *, read: tuple[int, int] = (3, 4), views: int = 1) -> Path:
        (folder / "checkpoints").mkdir(parents=True)
        torch.save(state, folder / "checkpoints" / "steps_1200_pytorch_model.pt")
        (folder / "config.yaml").write_text(yaml.safe_dump(run_config(read, views), sort_keys=False))
        (folder / "dataset_statistics.json").write_text(
            json.dumps({"oxe_bridge": statistics(0), "oxe_rt1": statistics(1)})
        )
        return folder

    return write


def run_config(read: tuple[int, int], views: int) -> dict[str, Any]:
    return {
        "run_id": "tiny_run",
        "framework": {
            "framework_py": "InternVLA-M1",
            "qwenvl": {"base_vlm": PRIVATE_BASE, "attn_implementation": "flash_attention_2"},
            "dino": {"dino_backbone": "dinov2_tiny"},
            "layer_qformer": {
                "qformer_start_layer": read[0],
                "qformer_end_layer": read[1],
                "num_query_tokens": 6,
                "input_dim": 64,
                "ouptput_dim": 64,
            },
            "action_model": {
                "action_model_type": "DiT-tiny",
                "action_dim": 7,
                "future_action_window_size": 3,
                "past_action_window_size": 0,
            },
        },
        "datasets": {
            "vla_data": {
                "CoT_prompt": BOX_PROMPT,
                "image_size": [112, 112],
                "obs": [f"image_{i}" for i in range(views)],
            }
        },
        "trainer": {"repeated_diffusion_steps": 4},
    }


def statistics(seed: int) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    low, high = -rng.uniform(0.01, 0.1, 7), rng.uniform(0.01, 0.1, 7)
    low[6], high[6] = 0.0, 1.0
    numbers = {
        "mean": (low + high) / 2,
        "std": (high - low) / 4,
        "min": low * 2,
        "max": high * 2,
        "q01": low,
        "q99": high,
    }
    mask = [True] * 6 + [False]
    return {
        "action": {name: v.tolist() for name, v in numbers.items()} | {"mask": mask},
        "num_transitions": 1000 + seed,
    }


@pytest.fixture(scope="session")
def original(make_original: Callable[..., Any]) -> Any:
    """The reference model as published: the planner's last layer, one view."""
    return make_original()


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory: pytest.TempPathFactory, original: Any, published_state: Any, write_run: Any) -> Path:
    """A published run, whose planner bears the older names and saved its tied output layer."""
    return write_run(tmp_path_factory.mktemp("run") / "tiny_run", published_state(original, "flat"))


@pytest.fixture(scope="session")
def options(base_folder: Path) -> Any:
    """What an import of a tiny run must be told."""
    from st4vla.platform.published.bring_in import ImportConfig

    return ImportConfig(base_vlm=str(base_folder), embodiment="oxe_bridge", settings=SETTINGS)


@pytest.fixture(scope="session")
def imported(tmp_path_factory: pytest.TempPathFactory, run_folder: Path, options: Any) -> Path:
    """The run in our folder."""
    from st4vla.platform.published.bring_in import bring_in

    return bring_in(str(run_folder), tmp_path_factory.mktemp("ours") / "imported", options)
