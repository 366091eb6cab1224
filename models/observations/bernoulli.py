"""Binary entries."""

from __future__ import annotations

import pyro.distributions as dist
from pyro.distributions import constraints
from torch import Tensor

from .base import Observation

__all__ = ["Bernoulli"]

MIN_MEAN = 0.001
"""Means are kept this far from 0 and 1, so that an entry that is constant in the data has a finite logit."""


class Bernoulli(Observation):
    """x ~ Bernoulli(sigmoid(output)), x in {0, 1}. Grey values have to be binarised first."""

    support = constraints.boolean

    def forward(self, output: Tensor) -> dist.Bernoulli:
        return dist.Bernoulli(logits=output)

    def offset(self, mean: Tensor) -> Tensor:
        return mean.clamp(MIN_MEAN, 1 - MIN_MEAN).logit()
