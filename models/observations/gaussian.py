"""Real entries with Gaussian noise."""

from __future__ import annotations

from math import expm1, log

import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor, nn
from torch.nn.functional import softplus

from ..arguments import flag, number
from .base import Observation

__all__ = ["Gaussian"]


class Gaussian(Observation):
    """x ~ Normal(output, scale), with one standard deviation for all entries.

    Args:
        scale: standard deviation; if learned, the value that a fit starts from.
        learned: whether a fit learns the scale, as softplus(raw_scale).
    """

    support = constraints.real

    def __init__(self, scale: float = 1.0, *, learned: bool = True) -> None:
        super().__init__()
        scale = number("Gaussian: scale", scale, above=0)
        raw = torch.tensor(log(expm1(scale)) if scale < 20.0 else scale)
        if flag("Gaussian: learned", learned):
            self.raw_scale = nn.Parameter(raw)
        else:
            self.register_buffer("raw_scale", raw)

    @property
    def scale(self) -> Tensor:
        """The standard deviation, shape ()."""
        return softplus(self.raw_scale)

    def forward(self, output: Tensor) -> dist.Normal:
        return dist.Normal(output, self.scale)

    def offset(self, mean: Tensor) -> Tensor:
        return mean
