"""Let a new chunk continue the one that is being executed while it is computed: real-time chunking for the DDIM head.

Real-time chunking (Black et al., arXiv 2506.07339) treats the overlap of two chunks as inpainting: the rows that will
have been executed when the new chunk arrives are frozen, the rows after them are drawn to the old chunk with a weight
that decays to zero where the old chunk ends. The paper guides a flow's velocity through a vector-Jacobian product;
here the head predicts noise, so the predicted clean chunk itself is inpainted at every DDIM step, after guidance has
been applied, and the noise is read back from it (`diffusion.sample_ddim`). No gradient is taken.

The paper's actions are joint targets. Ours may be deltas, and a delta that falls into the frozen rows is lost for good
where a target would still be reached; `Inpainting` makes up for it (docs/decisions/0005).

Of one session, in control steps:

    H  rows of a chunk
    s  `executed`: rows of the old chunk already passed over when the newest observation was taken
    d  `delay`: rows that will have been executed between that observation and the new chunk's arrival
    row i of the new chunk is row s + i of the old one; 0 <= d <= s <= H - d, or nothing was executed and d = 0

Letters: T chunk steps (H), A action width.
"""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from st4vla.platform.contracts import ActionForm
from st4vla.platform.data.statistics import Normalizer
from st4vla.platform.errors import PolicyError
from st4vla.platform.policy.settings import require

Schedule = Literal["exponential", "linear", "ones", "zeros"]


@dataclass(frozen=True)
class RealtimeConfig:
    """How much of the old chunk a new one keeps.

    Attributes:
        schedule: the weights behind the frozen rows: "exponential" and "linear" decay to zero at row H - s, "ones"
            keeps all of the overlap, "zeros" none of it.
        max_delay_steps: the longest delay that is answered; longer ones are refused. None leaves it to H // 2, beyond
            which d <= s <= H - d has no solution.
    """

    schedule: Schedule = "exponential"
    max_delay_steps: int | None = None

    def __post_init__(self) -> None:
        require(self.schedule in ("exponential", "linear", "ones", "zeros"), self, "schedule", "choose exponential")
        if self.max_delay_steps is not None:
            require(self.max_delay_steps >= 0, self, "max_delay_steps", "it must not be negative")


EXPONENTIAL = RealtimeConfig()


@dataclass(frozen=True)
class Continuation:
    """What of the old chunk a new one continues, aligned with the new one's rows.

    Attributes:
        actions: float32 [T,A], physical; rows beyond the old chunk's end repeat its last one and weigh nothing.
        weights: float32 [T], 1 in frozen rows, 0 where the new chunk is free.
        delay: number of frozen rows.
    """

    actions: np.ndarray
    weights: np.ndarray
    delay: int

    def keep_frozen(self, actions: np.ndarray) -> np.ndarray:
        """Give the new chunk with its frozen rows exactly as they were promised, free of rounding."""
        kept = actions.copy()
        kept[: self.delay] = self.actions[: self.delay]
        return kept


def continuation(
    remaining: np.ndarray, delay: int, horizon: int, config: RealtimeConfig = EXPONENTIAL
) -> Continuation | None:
    """Say what a new chunk of `horizon` rows keeps of the rows [H-s,A] that the old one still has; None of none.

    Raises:
        PolicyError: the numbers of executed and of delayed steps do not fit the horizon; the message names the field.
    """
    check_range(horizon, horizon - len(remaining), delay, config)
    if not len(remaining):
        return None
    weights = soft_mask(horizon, delay, horizon - len(remaining), config.schedule)
    return Continuation(hold_last(remaining, horizon), weights, delay)


def check_range(horizon: int, executed: int, delay: int, config: RealtimeConfig = EXPONENTIAL) -> None:
    """Check 0 <= delay <= executed <= horizon - delay.

    Raises:
        PolicyError: it does not hold, or the delay is longer than the config allows.
    """
    longest = horizon // 2 if config.max_delay_steps is None else min(config.max_delay_steps, horizon // 2)
    if not 0 <= delay <= longest:
        raise PolicyError(
            f"delay_steps is {delay}; a chunk of {horizon} actions can bridge 0 to {longest}. Make the answer faster, "
            "lower the control rate, or use longer chunks."
        )
    if not delay <= executed <= horizon - delay:
        raise PolicyError(
            f"executed_steps is {executed}; with delay_steps {delay} and {horizon} actions in a chunk it must lie in "
            f"{delay} to {horizon - delay}. Ask for the next chunk earlier or later."
        )


def hold_last(remaining: np.ndarray, horizon: int) -> np.ndarray:
    """Lengthen rows [K,A] to `horizon` by repeating the last action; zeros would be a command of their own."""
    rows = np.minimum(np.arange(horizon), len(remaining) - 1)
    return np.asarray(remaining, np.float32)[rows]


def soft_mask(horizon: int, delay: int, executed: int, schedule: Schedule = "exponential") -> np.ndarray:
    """Give each new row's weight of the old chunk, float32 [T] (arXiv 2506.07339, equation 5).

    Rows before `delay` weigh 1, rows from `horizon - executed` on weigh 0; between them the weight falls from row to
    row by the schedule, c or c (e^c - 1) / (e - 1) with c = (H - s - i) / (H - s - d + 1).
    """
    rows, end = np.arange(horizon), horizon - executed
    c = np.clip((end - rows) / (end - delay + 1), 0, 1)
    between = {
        "exponential": c * np.expm1(c) / (math.e - 1),
        "linear": c,
        "ones": np.ones(horizon),
        "zeros": np.zeros(horizon),
    }[schedule]
    return np.where(rows < delay, 1.0, np.where(rows < end, between, 0.0)).astype(np.float32)


class Inpainting:
    """Draw a predicted clean chunk [1,T,A] to a target; a `diffusion.Guide`, in normalised actions.

    In columns that are deltas, rows that are drawn to the old chunk would take a part of the way from the new one: a
    correction of one row that falls into the frozen ones would never be made. What they take is therefore carried on
    and made up in the rows behind them, within the scaled range [-1, 1], so that the chunk leads where it would have.

    Args:
        target_TA: the continued actions, normalised.
        weights_T: `Continuation.weights`.
        deltas_A: which columns are deltas; none unless given.
    """

    def __init__(self, target_TA: np.ndarray, weights_T: np.ndarray, deltas_A: np.ndarray | None = None) -> None:
        self.target = torch.from_numpy(np.asarray(target_TA, np.float32))
        self.weights = torch.from_numpy(np.asarray(weights_T, np.float32))[:, None]
        deltas = np.zeros(self.target.shape[1], bool) if deltas_A is None else np.asarray(deltas_A, bool)
        self.deltas = torch.from_numpy(deltas)

    @classmethod
    def of(cls, kept: Continuation, normalizer: Normalizer, form: ActionForm = "absolute_joints") -> "Inpainting":
        """Draw a policy whose actions are of that form, and scaled by `normalizer`, to what is to be kept."""
        return cls(normalizer.normalize_action(kept.actions), kept.weights, delta_columns(form, kept.actions.shape[1]))

    def __call__(self, clean: Tensor, level: float) -> Tensor:
        """Give the corrected chunk; rows of weight 0 come back bit for bit if nothing has to be made up in them."""
        target, weights = self.target.to(clean), self.weights.to(clean)
        mixed = torch.where(weights == 0, clean, clean + weights * (target - clean))
        if not self.deltas.any():
            return mixed
        return self._made_up(clean, mixed, weights)

    def _made_up(self, clean: Tensor, mixed: Tensor, weights: Tensor) -> Tensor:
        """Carry what each row lost to the rows behind it, as far as their weights leave them free."""
        deltas = self.deltas.to(clean.device)
        carry, rows = torch.zeros_like(clean[:, 0]), []
        for wanted, given, weight in zip(clean.unbind(1), mixed.unbind(1), weights, strict=True):
            carry = carry + torch.where(deltas, wanted - given, 0)
            most = given.abs().clamp(min=1)
            made_up = torch.clamp(given + (1 - weight) * carry, -most, most) - given
            made_up = torch.where(carry == 0, torch.zeros_like(carry), made_up)
            carry = carry - made_up
            rows.append(torch.where(made_up == 0, given, given + made_up))
        return torch.stack(rows, dim=1)


def delta_columns(form: ActionForm, width: int) -> np.ndarray:
    """Tell which columns of an action are deltas, bool [A]; the gripper of an arm, its last column, never is."""
    deltas = np.full(width, form != "absolute_joints")
    if form == "delta_end_effector":
        deltas[6:] = False
    return deltas
