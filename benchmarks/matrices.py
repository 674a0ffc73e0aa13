"""Matrices of the objects of one answer: IoUs read back from JSON, and similarities of phrases."""

from collections.abc import Callable, Sequence

import numpy as np


def float_matrix(rows: list, num_columns: int) -> np.ndarray:
    """Nested lists from JSON as a float array of shape `(len(rows), num_columns)`; `None` becomes NaN. `num_columns`
    is needed because an empty list does not say how many columns it has."""
    return np.array(rows, dtype=float).reshape(len(rows), num_columns)


def similarity_matrix(first: Sequence[str], second: Sequence[str], similarity: Callable) -> np.ndarray:
    """Similarity of each pair of phrases, shape `(len(first), len(second))`; `similarity` is not called without
    phrases."""
    if not first or not second:
        return np.zeros((len(first), len(second)))
    return np.array(similarity(first, second), dtype=float).reshape(len(first), len(second))
