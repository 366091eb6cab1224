"""The contract of an observation."""

from __future__ import annotations

from abc import ABC, abstractmethod

from pyro.distributions import constraints
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor, nn

__all__ = ["Observation"]


class Observation(nn.Module, ABC):
    """p(x_i | output): independent entries, one number of the decoder's output for each. Conditioning is calling."""

    support: constraints.Constraint
    """Where an entry of x_i may lie."""

    @abstractmethod
    def forward(self, output: Tensor) -> TorchDistribution:
        """The distribution of the entries, batch shape that of `output`."""

    @abstractmethod
    def offset(self, mean: Tensor) -> Tensor:
        """The output whose distribution has about this mean: where a fit may start."""
