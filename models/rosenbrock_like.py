"""A chain of curved ridges: each coordinate lies near a parabola of the previous one."""

from __future__ import annotations

import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor
from torch.distributions import Transform

from .arguments import count, positive, real
from .target import Target

__all__ = ["RosenbrockLike"]


class RosenbrockLike(Target):
    r"""h in R^d on a curved, narrow ridge.

        h_1 ~ Normal(loc, scale)
        h_j ~ Normal(curvature h_{j−1}², ridge_scale)         j = 2 … d

    Rosenbrock's function written as a product of conditionals, so exact draws and the normaliser are known.

    Args:
        dim: d, at least 2.
        loc: mean of h_1.
        scale: standard deviation of h_1.
        curvature: coefficient of the parabolas.
        ridge_scale: standard deviation across the ridge.

    Reference: Pagani, Wiegand & Nadarajah, "An n-dimensional Rosenbrock distribution for MCMC testing" (2022).
    """

    loc: Tensor
    scale: Tensor
    curvature: Tensor
    ridge_scale: Tensor

    def __init__(
        self,
        dim: int = 3,
        *,
        loc: Tensor | float = 1.0,
        scale: Tensor | float = 0.7,
        curvature: Tensor | float = 1.0,
        ridge_scale: Tensor | float = 0.2,
    ) -> None:
        super().__init__()
        self.dim = count(f"{type(self).__name__}: dim", dim, least=2)
        self.declare("loc", real("loc", loc, ()))
        self.declare("scale", positive("scale", scale, ()), constraints.positive)
        self.declare("curvature", real("curvature", curvature, ()))
        self.declare("ridge_scale", positive("ridge_scale", ridge_scale, ()), constraints.positive)

    def target(self) -> dist.TransformedDistribution:
        base = dist.Normal(self.loc.new_zeros(self.dim), 1.0).to_event(1)
        return dist.TransformedDistribution(base, [_Ridge(self.loc, self.scale, self.curvature, self.ridge_scale)])


class _Ridge(Transform):
    domain = codomain = constraints.real_vector
    bijective = True

    def __init__(self, loc: Tensor, scale: Tensor, curvature: Tensor, ridge_scale: Tensor) -> None:
        super().__init__()
        self.loc, self.scale, self.curvature, self.ridge_scale = loc, scale, curvature, ridge_scale

    def _call(self, x: Tensor) -> Tensor:
        h = [self.loc + self.scale * x[..., 0]]
        for noise in x[..., 1:].unbind(-1):
            h.append(self.curvature * h[-1] ** 2 + self.ridge_scale * noise)
        return torch.stack(h, -1)

    def _inverse(self, y: Tensor) -> Tensor:
        first = (y[..., :1] - self.loc) / self.scale
        return torch.cat([first, (y[..., 1:] - self.curvature * y[..., :-1] ** 2) / self.ridge_scale], -1)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        total = self.scale.log() + (x.shape[-1] - 1) * self.ridge_scale.log()
        return total.expand(y.shape[:-1])
