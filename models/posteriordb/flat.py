"""Flat, improper densities that still give starting points."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
from torch import Tensor

__all__ = ["flat", "flat_positive"]


def flat(like: Tensor) -> Any:
    """Density 1 on R, or on R^p for `like` of shape (p,). Draws are Normal(0, 1): autoguides and NUTS start from them.

    Pyro's own `ImproperUniform` has no draws, so autoguides cannot start from it.
    """
    normal = dist.Normal(like.new_zeros(like.shape), like.new_ones(like.shape))
    return normal.to_event(like.dim()).mask(False)


def flat_positive(like: Tensor) -> Any:
    """Density 1 on (0, ∞). Draws are LogNormal(0, 1), as starting points."""
    return dist.LogNormal(like.new_zeros(()), like.new_ones(())).mask(False)
