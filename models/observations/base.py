"""The contract of an observation."""

from __future__ import annotations

from abc import ABC, abstractmethod

from pyro.distributions import constraints
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor, nn

__all__ = ["Observation"]


class Observation(nn.Module, ABC):
    """p(x_i | output), with independent entries and one number of the decoder's output for each.

    A call with the output returns the distribution.
    """

    support: constraints.Constraint
    """The values that an entry of x_i may take."""

    @abstractmethod
    def forward(self, output: Tensor) -> TorchDistribution:
        """The distribution of the entries, with the shape of `output` as batch shape."""

    @abstractmethod
    def offset(self, mean: Tensor) -> Tensor:
        """The output whose distribution has about this mean: a starting point for a fit."""
