"""Binary entries."""

from __future__ import annotations

import pyro.distributions as dist
from pyro.distributions import constraints
from torch import Tensor

from .base import Observation

__all__ = ["Bernoulli"]


class Bernoulli(Observation):
    """x ~ Bernoulli(sigmoid(output)), x in {0, 1}. Grey values are no data of this kind: binarise them."""

    support = constraints.boolean

    def forward(self, output: Tensor) -> dist.Bernoulli:
        return dist.Bernoulli(logits=output)

    def offset(self, mean: Tensor) -> Tensor:
        return mean.clamp(0.001, 0.999).logit()
