"""A Gaussian with independent coordinates."""

from __future__ import annotations

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.nn.functional import softplus

from .base import Family, inverse_softplus

__all__ = ["MeanField"]


class MeanField(Family):
    """A Gaussian with independent coordinates: λ = (loc, softplus⁻¹ scale).

    Args:
        scale: standard deviation of q at the start of a fit.
    """

    @property
    def size(self) -> int:
        return 2 * self.dim

    def start(self) -> Tensor:
        return torch.cat([torch.zeros(self.dim), torch.full((self.dim,), inverse_softplus(self.scale))])

    def forward(self, lam: Tensor) -> dist.Independent:
        loc, raw_scale = lam.chunk(2, -1)
        return dist.Normal(loc, softplus(raw_scale)).to_event(1)

    def inverse(self, loc: Tensor, scale_tril: Tensor) -> Tensor:
        """The λ of the Gaussian with this mean, (..., dim), and diagonal Cholesky factor, (..., dim, dim)."""
        scale = scale_tril.diagonal(dim1=-2, dim2=-1)
        return torch.cat([loc, scale + (-torch.expm1(-scale)).log()], -1)

    def blocks(self) -> list[list[int]]:
        return [[i] for i in range(self.dim)]
