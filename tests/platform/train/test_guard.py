"""A broken loss stops the run and leaves its batch; a jump is named."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from st4vla.platform.errors import ConfigError, TrainingError
from st4vla.platform.train.guard import AlarmConfig, Alarms, LossGuard


def test_the_batch_that_broke_the_loss_is_kept(tmp_path: Path):
    guard = LossGuard(tmp_path, rank=1)
    good, bad = torch.tensor(0.5), torch.tensor(float("nan"))
    guard.hold(7, {"robot": {"x": torch.zeros(2)}}, good, {})
    guard.hold(8, {"robot": {"x": torch.ones(2), "names": ["a"]}}, bad, {"robot/loss": bad, "grounding/loss": good})
    with pytest.raises(TrainingError, match=r"step 8 .* worker 1: \{'robot/loss': nan\}; its batch is"):
        guard.check()
    kept = load_file(tmp_path / "broken_batch_step_8_worker_1.safetensors")
    assert kept["robot.x"].tolist() == [1.0, 1.0] and list(kept) == ["robot.x"]
    guard.check()


def test_a_gradient_that_is_not_finite_blames_its_own_batch_and_not_the_next(tmp_path: Path):
    guard, fine = LossGuard(tmp_path, rank=0), torch.tensor(0.5)
    guard.hold(7, {"robot": {"x": torch.zeros(2)}}, fine, {"robot/loss": fine})
    guard.stepped(torch.tensor(1.5))
    guard.hold(8, {"robot": {"x": torch.ones(2)}}, fine, {"robot/loss": fine})
    guard.stepped(torch.tensor(float("nan")))
    with pytest.raises(TrainingError, match=r"the gradient of step 8 is not finite on worker 0"):
        guard.hold(9, {"robot": {"x": torch.ones(2)}}, torch.tensor(float("nan")), {})
    assert load_file(tmp_path / "broken_batch_step_8_worker_0.safetensors")["robot.x"].tolist() == [1.0, 1.0]


def test_an_alarm_names_the_figure_that_jumps_and_by_how_much():
    alarms = Alarms(AlarmConfig(times=3.0, memory=10, quiet=2))
    assert [alarms.look({"loss": 1.0, "gradient_norm": 2.0}) for _ in range(3)] == [{}, {}, {}]
    assert alarms.look({"loss": 4.0, "gradient_norm": 2.0}) == {"loss": 4.0}
    assert alarms.look({"loss": 1.0, "gradient_norm": 2.0}) == {}


def test_a_slow_rise_raises_no_alarm_and_zero_switches_them_off():
    slow = Alarms(AlarmConfig(times=3.0, quiet=1))
    assert not any(slow.look({"loss": 1.0 + 0.2 * step}) for step in range(50))
    off = Alarms(AlarmConfig(times=0.0, quiet=1))
    assert not any(off.look({"loss": value}) for value in (1.0, 1.0, 1e9))


def test_an_alarm_below_the_mean_is_refused():
    with pytest.raises(ConfigError, match=r"alarms\.times is 0\.5"):
        AlarmConfig(times=0.5)
