"""Lay out a turn of the conversation: its tokens, and where each stands in time, row and column.

The positions are those of the Qwen-VL family's rotary embedding: a text token advances all three by one; an image's
tokens share the time, spread over rows and columns, and advance by the longer side.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

IGNORE = -100


@dataclass(frozen=True)
class Turn:
    """One row before padding: tokens [n], positions [3,n], and how many tokens at its end are the answer."""

    ids: np.ndarray
    positions: np.ndarray
    answer: int = 0

    def followed_by(self, answer_ids: Sequence[int]) -> "Turn":
        """Append an answer."""
        after = self.positions.max() + 1 + np.arange(len(answer_ids))
        ids = np.concatenate([self.ids, np.asarray(answer_ids, np.int64)])
        return Turn(ids, np.concatenate([self.positions, np.stack([after] * 3)], axis=1), len(answer_ids))


def join(ids: Sequence[int], image_id: int, side: int) -> Turn:
    """Lay out prompt tokens in which each `image_id` stands for a whole image of side x side tokens."""
    tokens: list[np.ndarray] = []
    positions: list[np.ndarray] = []
    rows, columns = np.divmod(np.arange(side * side), side)
    now = 0
    for token in ids:
        if token == image_id:
            tokens.append(np.full(side * side, image_id))
            positions.append(np.stack([np.zeros_like(rows), rows, columns]) + now)
            now += side
        else:
            tokens.append(np.array([token]))
            positions.append(np.full((3, 1), now))
            now += 1
    return Turn(np.concatenate(tokens).astype(np.int64), np.concatenate(positions, axis=1).astype(np.int64))


def pad_left(turns: Sequence[Turn], pad_id: int) -> dict[str, Tensor]:
    """Batch turns of unequal length, with labels where they carry answers."""
    count, length = len(turns), max(len(turn.ids) for turn in turns)
    ids = np.full((count, length), pad_id, np.int64)
    mask = np.zeros((count, length), np.int64)
    positions = np.zeros((3, count, length), np.int64)
    labels = np.full((count, length), IGNORE, np.int64)
    for row, turn in enumerate(turns):
        start = length - len(turn.ids)
        ids[row, start:], mask[row, start:], positions[:, row, start:] = turn.ids, 1, turn.positions
        if turn.answer:
            labels[row, -turn.answer :] = turn.ids[-turn.answer :]
    batch = {"input_ids": ids, "attention_mask": mask, "position_ids": positions}
    if any(turn.answer for turn in turns):
        batch["labels"] = labels
    return {name: torch.from_numpy(values) for name, values in batch.items()}
