"""Grey values in [0, 1]."""

from __future__ import annotations

import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor

from .base import Observation

__all__ = ["ContinuousBernoulli"]

MAX_OFFSET = 20.0
"""Largest offset in absolute value: sigmoid(20) is 1 in float32, so the gradient vanishes further out."""


class ContinuousBernoulli(Observation):
    """x ~ ContinuousBernoulli(sigmoid(output)), x in [0, 1]: a Bernoulli of grey values, normalised to be a density.

    Reference: Loaiza-Ganem & Cunningham, "The continuous Bernoulli: fixing a pervasive error in variational autoencoders"
    (2019).
    """

    support = constraints.unit_interval

    def forward(self, output: Tensor) -> dist.ContinuousBernoulli:
        return dist.ContinuousBernoulli(logits=output)

    def offset(self, mean: Tensor) -> Tensor:
        """The output with this mean, by bisection: the mean has no closed-form inverse."""
        low, high = torch.full_like(mean, -60.0), torch.full_like(mean, 60.0)
        for _ in range(60):
            middle = (low + high) / 2
            below = self(middle).mean < mean
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        return ((low + high) / 2).clamp(-MAX_OFFSET, MAX_OFFSET)
