"""Seeded published weights give the numbers they always gave, module by module.

Weights and inputs come from each name alone, so that no library's order of initialisation matters. After a change that
is meant to change the mathematics, delete tests/golden/published.json and run this file twice with
ST4VLA_WRITE_GOLDEN=1.
"""

import json
import os
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from st4vla.platform.checkpoint import load_checkpoint
from st4vla.platform.contracts import Observation
from st4vla.platform.published.bring_in import bring_in

GOLDEN = Path(__file__).resolve().parents[2] / "golden" / "published.json"
MODULES = ("tokens", "vision", "plan", "padding", "frame", "condition", "noise", "sample", "actions")


def drawn(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """Draw numbers from a name: norms about 1, matrices that keep their input's size, the rest small."""
    values = np.random.Generator(np.random.Philox(key=zlib.crc32(name.encode()))).standard_normal(shape)
    if "norm" in name and name.endswith("weight"):
        return torch.from_numpy(1 + 0.1 * values).float()
    scale = np.prod(shape[1:]) ** -0.5 if len(shape) > 1 and name.endswith("weight") else 0.3
    return torch.from_numpy(scale * values).float()


@pytest.fixture(scope="module")
def numbers(tmp_path_factory: Any, original: Any, published_state: Any, write_run: Any, options: Any) -> dict[str, Any]:
    """What each module of the imported policy gives."""
    state = {name: drawn(name, tuple(tensor.shape)) for name, tensor in published_state(original).items()}
    embedding = "qwen_vl_interface.model.model.language_model.embed_tokens.weight"
    state["qwen_vl_interface.model.lm_head.weight"] = state[embedding]
    folder = tmp_path_factory.mktemp("golden")
    checkpoint = load_checkpoint(bring_in(str(write_run(folder / "run", state)), folder / "ours", options))
    model, processor = checkpoint.model, checkpoint.processor
    rows, columns = np.mgrid[:112, :112]
    image = np.stack([rows * 2, columns * 2, (rows + columns) % 256], axis=-1).astype(np.uint8)
    words = ("Pick UP the red cube.", "put it")
    batch = processor.encode_observations([Observation({"third_person": image}, None, w) for w in words])
    noise = drawn("noise", (2, 4, 7))
    with torch.inference_mode():
        plan, mask = model.plan(batch)
        condition = model.condition(plan, mask, batch["images"])
        sample = model.sample(condition, noise)
        normalizer = processor.normalizer("oxe_bridge")
        return {
            "tokens": [batch["input_ids"].shape[1], zlib.crc32(batch["input_ids"].numpy().tobytes())],
            "vision": summary(model.planner.see(batch["images"].flatten(0, 1))[0]),
            "plan": summary(plan[:, -1]),
            "padding": summary(plan[1, 0]),
            "frame": summary(model.frame_encoder(batch["images"])),
            "condition": summary(condition),
            "noise": summary(model.action_expert(noise, torch.tensor([0, 60]), condition)),
            "sample": summary(sample),
            "actions": summary(torch.from_numpy(normalizer.unnormalize_action(sample.numpy() / 10))),
        }


def summary(tensor: torch.Tensor) -> list[float]:
    """Give the mean of the absolute values and seven elements, evenly spread."""
    flat = tensor.float().flatten()
    picked = flat[torch.linspace(0, len(flat) - 1, 7).long()]
    return [round(value, 6) for value in [flat.abs().mean().item(), *picked.tolist()]]


def test_the_golden_file_is_there(numbers):
    if os.environ.get("ST4VLA_WRITE_GOLDEN") == "1" and not GOLDEN.exists():
        GOLDEN.write_text(json.dumps(numbers, indent=1) + "\n")
    assert set(json.loads(GOLDEN.read_text())) == set(MODULES)


@pytest.mark.parametrize("module", MODULES)
def test_the_module_gives_what_it_always_gave(numbers, module):
    assert numbers[module] == pytest.approx(json.loads(GOLDEN.read_text())[module], rel=1e-4, abs=1e-4)
