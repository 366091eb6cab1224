"""The data of the cases that `race.py` defines, as NumPy arrays in single precision, the same for every runner."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.datasets import load_digits

__all__ = ["BATCH", "RATE", "data"]

BATCH = {"d": 128, "f": 128}
"""Rows in a minibatch; the other cases use all data in each step."""
RATE = 1e-3
"""Adam's learning rate."""


def data(case: str) -> tuple[Any, ...]:
    """The arguments of the model of a case."""
    rng = np.random.default_rng(0)
    if case == "a":
        return (rng.normal(0.0, 2**0.5, 100).astype(np.float32),)
    if case in ("b1", "b2"):
        return (
            np.array([28, 8, -3, 7, -1, 1, 18, 12], dtype=np.float32),
            np.array([15, 10, 16, 11, 9, 11, 10, 18], dtype=np.float32),
        )
    if case == "c":
        inputs = rng.normal(size=(1000, 50)).astype(np.float32)
        weights = rng.normal(size=50) / 50**0.5
        return inputs, (rng.random(1000) < 1 / (1 + np.exp(-inputs @ weights))).astype(np.float32)
    if case in ("d", "e"):
        return ((load_digits().data > 8).astype(np.float32),)
    return ((rng.random((12_800, 784)) < 0.2).astype(np.float32),)
