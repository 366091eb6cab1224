"""Flat, improper densities that can still be started from."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
from torch import Tensor

__all__ = ["flat", "flat_positive"]


def flat(like: Tensor) -> Any:
    """Density 1 on R, or on R^p for `like` of shape (p,). Its draws, which autoguides and NUTS start from, are Normal(0, 1).

    Pyro's `ImproperUniform` cannot be drawn from, so its autoguides cannot start from it.
    """
    normal = dist.Normal(like.new_zeros(like.shape), like.new_ones(like.shape))
    return normal.to_event(like.dim()).mask(False)


def flat_positive(like: Tensor) -> Any:
    """Density 1 on (0, ∞); its draws are LogNormal(0, 1)."""
    return dist.LogNormal(like.new_zeros(()), like.new_ones(())).mask(False)
