"""The real DeepSpeed takes the steps that plain torch would, and goes on where it stopped, to the bit."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from st4vla.platform.errors import CheckpointError, ConfigError, TrainingError
from st4vla.platform.train.alone import FolderReporter, join_group_of_one
from st4vla.platform.train.background import copied
from st4vla.platform.train.config import TrainConfig
from st4vla.platform.train.engine import TrainEngine
from st4vla.platform.train.guard import LossGuard
from st4vla.platform.train.loop import Inspection, Trainer, Worker, step_seed

CPU = torch.device("cpu")
pytestmark = pytest.mark.slow


class Line(torch.nn.Module):
    """Fit y = 2x with noise of its own; its questions ask the same of another head."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.planner = torch.nn.Linear(4, 4)
        self.expert = torch.nn.Linear(4, 4)

    def action_loss(self, batch):
        guess = self.expert(self.planner(batch["x"])) + 0.1 * torch.randn(4)
        return {"loss": (guess - 2 * batch["x"]).pow(2).mean()}

    def grounding_loss(self, batch):
        answer = (self.planner(batch["x"]) - batch["x"]).pow(2).mean()
        return {"loss": answer, "answer": answer}


class Calm(Line):
    """The same without noise, so that a batch's loss is the mean of its parts'."""

    def action_loss(self, batch):
        return {"loss": (self.expert(self.planner(batch["x"])) - 2 * batch["x"]).pow(2).mean()}


class Batches:
    """The batch of step i follows from i alone."""

    def __init__(self, place: int = 0) -> None:
        self.place = place
        self.unreadable: dict[str, int] = {}

    def __iter__(self):
        return self

    def __next__(self):
        rng = torch.Generator().manual_seed(self.place)
        self.place += 1
        return {name: {"x": torch.randn(4, 4, generator=rng)} for name in ("robot", "grounding")}

    def cursor(self):
        return {"place": self.place}


def config(steps: int = 6, zero_stage: int = 0, **changes) -> TrainConfig:
    values = {
        "stage": "action",
        "steps": steps,
        "log_every": 1,
        "optimiser": {"learning_rates": {"others": 0.05}, "warmup_steps": 2, "clip_norm": 0.5},
        "batch": {"robot": 4, "grounding": 4},
        "saving": {"every": 3, "keep": 5},
        "engine": {"zero_stage": zero_stage},
    }
    return TrainConfig.from_mapping(values | changes)


@pytest.fixture(autouse=True)
def group() -> None:
    join_group_of_one(CPU)


def train(settings: TrainConfig, folder: Path, resume: Path | None = None) -> tuple[Line, list[float]]:
    model, rows = Line(), []
    engine = TrainEngine(model, settings, CPU, 1)
    counters = engine.load(resume / "engine") if resume else {"step": 0, "cursor": {"place": 0}}

    def begin(place, model, step):
        weights = copied(model.state_dict())

        def write():
            place.mkdir()
            torch.save(weights, place / "weights.pt")

        return write

    batches = Batches(counters["cursor"]["place"])
    reporter = FolderReporter(folder, settings.saving, rows.append)
    trainer = Trainer(
        settings,
        engine,
        batches,
        reporter,
        Worker(),
        begin,
        [Inspection("validation", settings.validation.every, lambda model, step: {"checked": 1.0}, ("read",))],
        LossGuard(folder.parent, 0),
    )
    trainer.run(counters["step"])
    reporter.close()
    return model, [row["loss/total"] for row in rows if "loss/total" in row]


def by_hand(settings: TrainConfig) -> Line:
    """Six steps of torch's AdamW."""
    model = Line()
    for _ in weights_by_hand(settings, model):
        pass
    return model


def weights_by_hand(settings: TrainConfig, model: Line) -> Iterator[list[torch.Tensor]]:
    """Give the weights after every step of torch's AdamW."""
    weights = [p for p in model.parameters() if p.ndim > 1], [p for p in model.parameters() if p.ndim == 1]
    groups = [{"params": weights[0], "weight_decay": 1e-8}, {"params": weights[1], "weight_decay": 0.0}]
    optimiser = torch.optim.AdamW(groups, lr=0.05, betas=(0.9, 0.95), fused=True)
    from st4vla.platform.train.optimiser import learning_rate

    for step, batch in zip(range(settings.steps), Batches(), strict=False):
        torch.manual_seed(step_seed(0, step, 0, 0))
        loss = model.action_loss(batch["robot"])["loss"] + 0.1 * model.grounding_loss(batch["grounding"])["loss"]
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        for one in optimiser.param_groups:
            one["lr"] = learning_rate(step, 0.05, 5e-7, 2, settings.steps)
        optimiser.step()
        optimiser.zero_grad()
        yield [one.detach().clone() for one in model.parameters()]


def test_the_engine_takes_the_steps_of_plain_adamw(tmp_path: Path):
    trained, _ = train(config(), tmp_path)
    expected = by_hand(config())
    for one, other in zip(trained.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("zero_stage", [0, 2])
def test_a_resumed_run_ends_at_the_same_bits(tmp_path: Path, zero_stage: int):
    unbroken, losses = train(config(zero_stage=zero_stage), tmp_path / "one")
    resumed, later = train(config(zero_stage=zero_stage), tmp_path / "two", tmp_path / "one" / "step_0000003")
    assert later == losses[3:]
    for one, other in zip(unbroken.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, other)


def test_an_average_follows_the_weights_of_every_step_and_is_what_is_saved(tmp_path: Path):
    settings = config(average={"decay": 0.5})
    trained, _ = train(settings, tmp_path / "one")
    model, means = Line(), [one.detach().clone() for one in Line().parameters()]
    for step, weights in enumerate(weights_by_hand(settings, model)):
        share = 1 - min(0.5, (1 + step) / (10 + step))
        means = [mean.lerp(one, share) for mean, one in zip(means, weights, strict=True)]
    kept = torch.load(tmp_path / "one" / "step_0000006" / "engine" / "average.pt", weights_only=True)
    saved = torch.load(tmp_path / "one" / "step_0000006" / "policy" / "weights.pt", weights_only=True)
    for (name, own), mean in zip(trained.named_parameters(), means, strict=True):
        torch.testing.assert_close(kept[name], mean, rtol=1e-5, atol=1e-6)
        assert torch.equal(saved[name], kept[name]) and not torch.equal(own, kept[name])
    train(settings, tmp_path / "two", tmp_path / "one" / "step_0000003")
    again = torch.load(tmp_path / "two" / "step_0000006" / "engine" / "average.pt", weights_only=True)
    assert all(torch.equal(again[name], kept[name]) for name in kept)


def test_an_average_begins_with_the_weights_that_deepspeed_has_placed(tmp_path: Path):
    settings = config(average={"decay": 0.5}, engine={"zero_stage": 2, "precision": "bf16"})
    engine = TrainEngine(Line(), settings, CPU, 1)
    write = engine.save(tmp_path / "engine", {})
    engine.snapshot.settle()
    write()
    kept = torch.load(tmp_path / "engine" / "average.pt", weights_only=True)
    assert all(torch.equal(kept[name], one.float()) for name, one in engine.model.named_parameters())


def test_accumulation_takes_the_steps_of_the_whole_batch(tmp_path: Path):
    whole, halves = config(), config(batch={"robot": 4, "grounding": 4, "accumulation": 2})
    models = []
    for settings in (whole, halves):
        model, parts = Calm(), settings.batch.accumulation
        engine, rows = TrainEngine(model, settings, CPU, 1), Batches()
        for step in range(settings.steps):
            batches = next(rows)
            for micro in range(parts):
                share = {name: {"x": batch["x"][micro::parts]} for name, batch in batches.items()}
                total, _ = engine.losses(share)
                engine.backward(total)
                engine.step(step)
        models.append(model)
    for one, other in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(models[0].expert.weight, Calm().expert.weight)


def test_a_loss_that_is_not_finite_ends_the_run(tmp_path: Path):
    hot = config(optimiser={"learning_rates": {"others": 1e38}, "warmup_steps": 0})
    with pytest.raises(TrainingError, match=r"the loss of step \d+ is not finite .* its batch is"):
        train(hot, tmp_path)


def test_a_figure_that_nobody_measures_cannot_say_which_checkpoint_is_best(tmp_path: Path):
    measured = {"every": 3, "keep": 5, "best": "validation/checked"}
    train(config(saving=measured, validation={"every": 3}), tmp_path / "one")
    train(config(saving=measured | {"best": "validation/read"}, validation={"every": 3}), tmp_path / "three")
    misspelt = config(saving=measured | {"best": "validation/cheked"}, validation={"every": 3})
    with pytest.raises(ConfigError, match=r"'validation/cheked', which was not .* 3; validation gives: validation/che"):
        train(misspelt, tmp_path / "two")
    assert not list((tmp_path / "two").glob("step_*"))


def test_a_checkpoint_without_engine_state_is_refused(tmp_path: Path):
    (tmp_path / "engine").mkdir()
    with pytest.raises(CheckpointError, match="incomplete"):
        TrainEngine(Line(), config(), CPU, 1).load(tmp_path / "engine")
