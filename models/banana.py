"""Haario's banana: a bent Gaussian."""

from __future__ import annotations

import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor
from torch.distributions import Transform

from .arguments import positive, real
from .target import Target

__all__ = ["Banana"]


class Banana(Target):
    r"""h in R²: the mean of the second coordinate is quadratic in the first.

        h_1 ~ Normal(0, scale)
        h_2 ~ Normal(bend (h_1² − scale²), 1)

    Both means are zero, and h_1 and h_2 are uncorrelated but strongly dependent.

    Args:
        bend: curvature, a number; zero gives a Gaussian.
        scale: standard deviation of h_1.

    Reference: Haario, Saksman & Tamminen, "Adaptive proposal distribution for random walk Metropolis algorithm" (1999).
    """

    bend: Tensor
    scale: Tensor

    def __init__(self, *, bend: Tensor | float = 0.3, scale: Tensor | float = 2.0) -> None:
        super().__init__()
        self.declare("bend", real("bend", bend, ()))
        self.declare("scale", positive("scale", scale, ()), constraints.positive)

    def target(self) -> dist.TransformedDistribution:
        base = dist.Normal(self.scale.new_zeros(2), 1.0).to_event(1)
        return dist.TransformedDistribution(base, [_Bend(self.bend, self.scale)])


class _Bend(Transform):
    domain = codomain = constraints.real_vector
    bijective = True

    def __init__(self, bend: Tensor, scale: Tensor) -> None:
        super().__init__()
        self.bend, self.scale = bend, scale

    def _call(self, x: Tensor) -> Tensor:
        first = self.scale * x[..., 0]
        return torch.stack([first, x[..., 1] + self._bent(first)], -1)

    def _inverse(self, y: Tensor) -> Tensor:
        return torch.stack([y[..., 0] / self.scale, y[..., 1] - self._bent(y[..., 0])], -1)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        return self.scale.log().expand(y.shape[:-1])

    def _bent(self, first: Tensor) -> Tensor:
        return self.bend * (first**2 - self.scale**2)
