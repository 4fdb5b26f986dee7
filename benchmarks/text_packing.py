"""Count the padding in stage 1's batches of questions, which packing leaves out.

Batches of 32 as the recipe `tiny_grounding` has them, of every kind of question at its usual weight, about painted
recordings, in the packaged tokenizer's words.

    python -m benchmarks.text_packing
"""

import tempfile
from pathlib import Path

from st4vla.platform.machine import prepare_process

BATCH, BATCHES = 32, 20


def main() -> None:
    """Count and record."""
    prepare_process()
    from benchmarks.recordings import painted_dataset
    from benchmarks.results import record
    from st4vla.platform.checkpoint import load_checkpoint
    from st4vla.platform.data.lerobot_reader import open_dataset
    from st4vla.platform.data.mixture import Loader, LoaderConfig, Mixture
    from st4vla.platform.data.sources import GroundingSource

    processor = load_checkpoint("platform/base", parts_ok=True).processor
    with tempfile.TemporaryDirectory() as place:
        source = GroundingSource(open_dataset(painted_dataset(Path(place) / "data", episodes=20)))
        batches = iter(Loader(Mixture([source]), LoaderConfig(BATCH, prefetch=0)))
        masks = [processor.encode_grounding(next(batches))["attention_mask"] for _ in range(BATCHES)]
    tokens, places = sum(int(mask.sum()) for mask in masks), sum(mask.numel() for mask in masks)
    share = round(100 * (1 - tokens / places), 1)
    command = "python -m benchmarks.text_packing"
    record("packing: padding left out of tiny's batches of questions", 4, share, "% of positions", "report", command)
    print(f"{tokens} tokens in {places} positions: {share} % is padding")


if __name__ == "__main__":
    main()
