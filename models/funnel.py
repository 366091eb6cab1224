"""Neal's funnel: the shape of a centred hierarchical posterior with few data."""

from __future__ import annotations

from collections.abc import Mapping

import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor
from torch.distributions import Transform

from .arguments import count, flag, positive
from .target import Target

__all__ = ["Funnel"]


class Funnel(Target):
    r"""A log variance h_1 and the d − 1 variables that it scales.

        h_1 ~ Normal(0, scale)
        h_j ~ Normal(0, exp(h_1 / 2))         j = 2 … d

    No Gaussian q is both wide at the mouth of the funnel and narrow at its neck. With `centered=False` the latent is
    h̃ ~ Normal(0, I), of which h is a function: every Gaussian family contains that posterior.

    Args:
        dim: d, at least 2.
        scale: standard deviation of h_1.
        centered: whether the latent is h or h̃.

    Reference: Neal, "Slice sampling" (2003), section 8.
    """

    scale: Tensor

    def __init__(self, dim: int = 10, *, scale: Tensor | float = 3.0, centered: bool = True) -> None:
        super().__init__()
        self.dim = count("Funnel: dim", dim, least=2)
        self.centered = flag("Funnel: centered", centered)
        self.declare("scale", positive("scale", scale, ()), constraints.positive)

    def target(self) -> dist.TransformedDistribution:
        base = dist.Normal(self.scale.new_zeros(self.dim), 1.0).to_event(1)
        return dist.TransformedDistribution(base, [_Funnel(self.scale)]) if self.centered else base

    def quantities(self, h: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """h of the funnel, shape (K, d), in both parametrisations."""
        return {"h": h["h"] if self.centered else _Funnel(self.scale)(h["h"])}


class _Funnel(Transform):
    domain = codomain = constraints.real_vector
    bijective = True

    def __init__(self, scale: Tensor) -> None:
        super().__init__()
        self.scale = scale

    def _call(self, x: Tensor) -> Tensor:
        log_variance = self.scale * x[..., :1]
        return torch.cat([log_variance, torch.exp(log_variance / 2) * x[..., 1:]], -1)

    def _inverse(self, y: Tensor) -> Tensor:
        return torch.cat([y[..., :1] / self.scale, torch.exp(-y[..., :1] / 2) * y[..., 1:]], -1)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        return self.scale.log() + (x.shape[-1] - 1) * y[..., 0] / 2
