"""The step's loss is a weighted sum; the log also has the mean of every dataset."""

import torch

from st4vla.platform.train.objective import Objective, by_dataset


class Fixed(torch.nn.Module):
    def action_loss(self, batch):
        return {"loss": torch.tensor(3.0), "rows": torch.tensor([1.0, 3.0, 5.0])}

    def grounding_loss(self, batch):
        return {"loss": torch.tensor(2.0), "answer": torch.tensor(2.0)}


def test_losses_are_weighed_summed_and_told_by_dataset():
    objective = Objective(Fixed(), {"robot": 1.0, "grounding": 0.1})
    total, parts = objective({"robot": {"dataset": ("a", "b", "a")}, "grounding": {}})
    assert abs(float(total) - 3.2) < 1e-6
    assert {name: float(part) for name, part in parts.items()} == {
        "robot/loss": 3.0,
        "robot/of/a": 3.0,
        "robot/of/b": 3.0,
        "grounding/loss": 2.0,
        "grounding/answer": 2.0,
    }


def test_a_dataset_without_a_row_in_the_batch_has_no_mean():
    means = by_dataset(torch.tensor([1.0, 2.0, 6.0]), ["b", "a", "b"])
    assert {name: float(mean) for name, mean in means.items()} == {"b": 3.5, "a": 2.0}
