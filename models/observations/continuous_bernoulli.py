"""Grey values in [0, 1]."""

from __future__ import annotations

import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor

from .base import Observation

__all__ = ["ContinuousBernoulli"]


class ContinuousBernoulli(Observation):
    """x ~ ContinuousBernoulli(sigmoid(output)), x in [0, 1]: the density that a Bernoulli scored on grey values is not.

    Reference: Loaiza-Ganem & Cunningham, "The continuous Bernoulli: fixing a pervasive error in variational autoencoders"
    (2019).
    """

    support = constraints.unit_interval

    def forward(self, output: Tensor) -> dist.ContinuousBernoulli:
        return dist.ContinuousBernoulli(logits=output)

    def offset(self, mean: Tensor) -> Tensor:
        """By bisection: the mean of the density has no closed-form inverse."""
        low, high = torch.full_like(mean, -60.0), torch.full_like(mean, 60.0)
        for _ in range(60):
            middle = (low + high) / 2
            below = self(middle).mean < mean
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        return ((low + high) / 2).clamp(-20.0, 20.0)
