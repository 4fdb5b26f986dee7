"""Merge what several overlapping chunks say of the same control step.

Adaptive ensembling as CogACT defines it and InternVLA-M1's SimplerEnv client uses it: weights exp(alpha * similarity),
where the similarity is the cosine between a prediction and the newest one, so that predictions of another mode count
less. Letters: N predictions, A action width.
"""

from collections.abc import Sequence

import numpy as np

# Keeps the cosine of a prediction of nothing but zeros at 0.
SMALLEST_NORM = 1e-7


def ensemble(predictions: Sequence[np.ndarray], alpha: float) -> np.ndarray:
    """Merge N predictions [A] of one step, oldest first, into one action [A], float64."""
    rows_NA = np.stack([np.asarray(row, np.float64) for row in predictions])
    newest = rows_NA[-1]
    norms = np.linalg.norm(rows_NA, axis=1) * np.linalg.norm(newest)
    weights_N = np.exp(alpha * (rows_NA @ newest) / (norms + SMALLEST_NORM))
    return weights_N @ rows_NA / weights_N.sum()
