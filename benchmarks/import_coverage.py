"""Count the published tensors that an import accounts for, at the published names and shapes.

    python -m benchmarks.import_coverage [--record] [--write FOLDER]

The names and shapes are written down here from the public code, not taken from the importer; the planner's are those
of transformers' own Qwen2.5-VL-3B. Each tensor is one number seen from every place, so that the file is small. For both
generations of planner names, with and without the output layer. `--write` saves a run of whole tensors (8 GB), imports
and loads it, and tells the memory that took.
"""

import argparse
import json
import math
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
import yaml
from torch import Tensor
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from benchmarks.results import record
from st4vla.platform.checkpoint import load_checkpoint
from st4vla.platform.policy.tokenizer import build_tokenizer
from st4vla.platform.published.bring_in import ImportConfig, bring_in, prepare_run

D, H, V = 768, 2048, 384
VISION = {
    "depth": 32,
    "hidden_size": 1280,
    "intermediate_size": 3420,
    "num_heads": 16,
    "out_hidden_size": H,
    "fullatt_block_indexes": [7, 15, 23, 31],
    "window_size": 112,
}
TEXT = {
    "hidden_size": H,
    "intermediate_size": 11008,
    "num_hidden_layers": 36,
    "num_attention_heads": 16,
    "num_key_value_heads": 2,
    "vocab_size": 151936,
    "max_position_embeddings": 128000,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1_000_000.0,
    "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
    "tie_word_embeddings": True,
}


def linear(name: str, out: int, inward: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{name}.weight", (out, inward)
    yield f"{name}.bias", (out,)


def norm(name: str, width: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{name}.weight", (width,)
    yield f"{name}.bias", (width,)


def query_transformer(layers: int = 1) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield from linear("layer_qformer.proj", D, H)
    yield "layer_qformer.query_tokens", (64, D)
    for i in range(layers):
        layer = f"layer_qformer.layers.{i}"
        yield from norm(f"{layer}.norm1", D)
        yield from norm(f"{layer}.norm2", D)
        yield f"{layer}.cross_attn.in_proj_weight", (3 * D, D)
        yield f"{layer}.cross_attn.in_proj_bias", (3 * D,)
        yield from linear(f"{layer}.cross_attn.out_proj", D, D)
        yield from linear(f"{layer}.mlp.0", 4 * D, D)
        yield from linear(f"{layer}.mlp.2", D, 4 * D)


def eyes() -> Iterator[tuple[str, tuple[int, ...]]]:
    body = "dino_encoder.body"
    yield f"{body}.cls_token", (1, 1, V)
    yield f"{body}.pos_embed", (1, 1370, V)
    yield f"{body}.mask_token", (1, V)
    yield f"{body}.patch_embed.proj.weight", (V, 3, 14, 14)
    yield f"{body}.patch_embed.proj.bias", (V,)
    for i in range(12):
        block = f"{body}.blocks.{i}"
        yield from norm(f"{block}.norm1", V)
        yield from linear(f"{block}.attn.qkv", 3 * V, V)
        yield from linear(f"{block}.attn.proj", V, V)
        yield f"{block}.ls1.gamma", (V,)
        yield from norm(f"{block}.norm2", V)
        yield from linear(f"{block}.mlp.fc1", 4 * V, V)
        yield from linear(f"{block}.mlp.fc2", V, 4 * V)
        yield f"{block}.ls2.gamma", (V,)
    yield from norm(f"{body}.norm", V)
    yield from linear("dino_pro", H, V)


def expert() -> Iterator[tuple[str, tuple[int, ...]]]:
    net = "action_model.net"
    yield from linear(f"{net}.history_embedder.linear", D, 7)
    yield from linear(f"{net}.x_embedder.linear", D, 7)
    yield from linear(f"{net}.t_embedder.mlp.0", D, 256)
    yield from linear(f"{net}.t_embedder.mlp.2", D, D)
    yield from linear(f"{net}.z_embedder.linear", D, D)
    yield f"{net}.z_embedder.uncondition", (64, D)
    yield f"{net}.positional_embedding", (80, D)
    for i in range(12):
        yield from linear(f"{net}.blocks.{i}.attn.qkv", 3 * D, D)
        yield from linear(f"{net}.blocks.{i}.attn.proj", D, D)
        yield from linear(f"{net}.blocks.{i}.mlp.fc1", 4 * D, D)
        yield from linear(f"{net}.blocks.{i}.mlp.fc2", D, 4 * D)
    yield from linear(f"{net}.final_layer.linear", 7, D)


def planner(generation: str, output_layer: bool) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Give transformers' own names, which are of the newer generation, or what the older called them."""
    with torch.device("meta"):
        model = Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(**TEXT, vision_config=VISION))
    for name, tensor in model.state_dict().items():
        if generation == "flat":
            name = name.replace("model.visual.", "visual.").replace("model.language_model.", "model.")
        if output_layer or name != "lm_head.weight":
            yield f"qwen_vl_interface.model.{name}", tuple(tensor.shape)


def published_shapes(generation: str = "nested", output_layer: bool = True, layers: int = 1) -> dict[str, tuple]:
    """Give name and shape of every tensor of a published checkpoint."""
    return dict([*planner(generation, output_layer), *query_transformer(layers), *eyes(), *expert()])


def write_base(folder: Path) -> Path:
    """Write the small files of Qwen2.5-VL-3B: its sizes, and a tokenizer that stands in for its own."""
    build_tokenizer(["Your task is"], 400).save_pretrained(folder)
    values = {**TEXT, "model_type": "qwen2_5_vl", "hidden_act": "silu", "vision_config": VISION}
    (folder / "config.json").write_text(json.dumps(values))
    return folder


def write_run(folder: Path, state: Mapping[str, Tensor], layers: int = 1) -> Path:
    """Write a published run of the published sizes."""
    (folder / "checkpoints").mkdir(parents=True)
    torch.save(dict(state), folder / "checkpoints" / "steps_50000_pytorch_model.pt")
    numbers = {name: [1.0] * 7 for name in ("mean", "std", "min", "max", "q01", "q99")}
    statistics = {"oxe_bridge": {"action": numbers | {"mask": [True] * 6 + [False]}}}
    (folder / "dataset_statistics.json").write_text(json.dumps(statistics))
    framework = {
        "qwenvl": {"base_vlm": "Qwen/Qwen2.5-VL-3B-Instruct"},
        "dino": {"dino_backbone": "dinov2_vits14"},
        "layer_qformer": {
            "qformer_start_layer": 37 - layers,
            "qformer_end_layer": 37,
            "num_query_tokens": 64,
            "input_dim": H,
            "ouptput_dim": D,
        },
        "action_model": {
            "action_model_type": "DiT-B",
            "action_dim": 7,
            "future_action_window_size": 15,
            "past_action_window_size": 0,
        },
    }
    (folder / "config.yaml").write_text(yaml.safe_dump({"run_id": "published", "framework": framework}))
    return folder


def coverage(folder: Path, generation: str, output_layer: bool, layers: int) -> float:
    """Give the share of published tensors that an import accounts for, in percent; it raises where one does not fit."""
    shapes = published_shapes(generation, output_layer, layers)
    state = {name: torch.zeros((), dtype=torch.bfloat16).expand(shape) for name, shape in shapes.items()}
    run = write_run(folder / f"run-{generation}-{output_layer}-{layers}", state, layers)
    options = ImportConfig(base_vlm=str(write_base(folder / "base")))
    account = prepare_run(str(run), options).fitted.account()
    found = account["mapped"] + len(account["unused"]) + len(account["tied_to_embedding"])
    print(
        f"{generation:6} output layer {output_layer!s:5} layers {layers:2}: {found} of {len(shapes)}", account["unused"]
    )
    return 100 * found / len(shapes)


def import_whole(folder: Path) -> None:
    """Save a run of whole tensors, import it and load it, and print sizes and the most memory that was our own.

    Pages of a mapped file count as a process' memory, too, but the system takes them back as it likes.
    """
    shapes = published_shapes("flat", output_layer=False)
    folder.mkdir(parents=True, exist_ok=True)
    blank = folder / "zeros"
    with open(blank, "wb") as file:
        file.truncate(2 * max(math.prod(shape) for shape in shapes.values()))
    state = {n: torch.from_file(str(blank), size=math.prod(s), dtype=torch.bfloat16).view(s) for n, s in shapes.items()}
    run = write_run(folder / "run", state)
    del state
    blank.unlink()
    size = next((run / "checkpoints").iterdir()).stat().st_size
    before, began = own_memory(), time.monotonic()
    with Watch() as watch:
        bring_in(str(run), folder / "ours", ImportConfig(base_vlm=str(write_base(folder / "base"))))
    print(f"imported {size / 2**30:.2f} GiB in {time.monotonic() - began:.0f} s", end="; ")
    print(f"own memory rose from {before / 2**20:.2f} to {watch.most / 2**20:.2f} GiB")
    began = time.monotonic()
    with Watch() as watch:
        load_checkpoint(folder / "ours", dtype=torch.bfloat16)
    print(f"loaded in {time.monotonic() - began:.0f} s; own memory {watch.most / 2**20:.2f} GiB at most")


def own_memory() -> int:
    """Give this process' anonymous memory in KiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))


class Watch:
    """Look at this process' memory ten times a second."""

    most = 0

    def __enter__(self) -> "Watch":
        self.over = threading.Event()
        self.thread = threading.Thread(target=self.look, daemon=True)
        self.thread.start()
        return self

    def look(self) -> None:
        while not self.over.wait(0.1):
            self.most = max(self.most, own_memory())

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self.thread.join()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--record", action="store_true", help="keep the figure in benchmarks/results.json")
    parser.add_argument("--write", type=Path, help="an empty folder with 17 GB free, for a run of whole tensors")
    options = parser.parse_args()
    if options.write:
        import_whole(options.write)
        return
    cases = [("nested", True, 1), ("nested", False, 1), ("flat", True, 1), ("flat", False, 1), ("nested", True, 16)]
    with tempfile.TemporaryDirectory() as folder:
        least = min(coverage(Path(folder), *case) for case in cases)
    print(f"{least:.0f} % of published tensors are accounted for")
    if options.record:
        command = "python -m benchmarks.import_coverage --record"
        record("published tensors accounted for on import", 3, least, "%", ">= 100", command)


if __name__ == "__main__":
    main()
