"""One worker of several: train a few steps of two layers, save in the middle, or go on from there; print the losses.

Run by test_universal.py, once a worker: one_worker.py RANK WORLD PORT ZERO_STAGE FOLDER START_OR_RESUME
"""

import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from st4vla.platform.train.config import TrainConfig
from st4vla.platform.train.engine import TrainEngine

STEPS, SAVED_AFTER = 9, 5


class Line(torch.nn.Module):
    """Two layers, with weights that decay and biases that do not: two groups of the optimiser."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.planner = torch.nn.Linear(4, 4)
        self.expert = torch.nn.Linear(4, 4)

    def action_loss(self, batch):
        return {"loss": (self.expert(self.planner(batch["x"])) - 2 * batch["x"]).pow(2).mean()}

    def grounding_loss(self, batch):
        return {"loss": (self.planner(batch["x"]) - batch["x"]).pow(2).mean()}


def settings(zero_stage: int) -> TrainConfig:
    values = {
        "stage": "action",
        "steps": STEPS,
        "optimiser": {"learning_rates": {"planner": 0.05, "others": 0.02}, "warmup_steps": 2, "weight_decay": 0.1},
        "batch": {"robot": 4, "grounding": 4},
        "engine": {"zero_stage": zero_stage},
    }
    return TrainConfig.from_mapping(values)


def main(rank: int, world: int, port: int, zero_stage: int, folder: Path, resume: bool) -> None:
    os.environ["LOCAL_RANK"] = str(rank)
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=world)
    state = folder / "checkpoint" / "engine"
    engine = TrainEngine(Line(), settings(zero_stage), torch.device("cpu"), world, state if resume else None)
    for step in range(engine.load(state)["step"] if resume else 0, STEPS):
        x = torch.randn(4, 4, generator=torch.Generator().manual_seed(step))[rank::world]
        total, _ = engine.losses({"robot": {"x": x}, "grounding": {"x": x}})
        engine.backward(total)
        engine.step(step)
        mean = total.detach().clone()
        dist.all_reduce(mean)
        if rank == 0:
            print(f"loss {step} {float(mean) / world:.5f}", flush=True)
        if not resume and step + 1 == SAVED_AFTER:
            write = engine.save(state, {"step": SAVED_AFTER})
            engine.snapshot.settle()
            write()
            dist.barrier()
    dist.barrier()
    # gloo's threads may abort a process that ends in the usual way just after its last collective; the work is done.
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    rank, world, port, zero_stage = (int(word) for word in sys.argv[1:5])
    main(rank, world, port, zero_stage, Path(sys.argv[5]), sys.argv[6] == "resume")
