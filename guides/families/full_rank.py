"""A Gaussian with any covariance."""

from __future__ import annotations

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.nn.functional import softplus

from .base import Family, inverse_softplus

__all__ = ["FullRank"]


class FullRank(Family):
    """A Gaussian with any covariance: λ = (loc, softplus⁻¹ scale, lower).

    The Cholesky factor is diag(scale) (I + L), where `lower` fills L strictly below the diagonal. The entries of L have no
    unit, so one step size suits coordinates of all scales.

    Args:
        scale: standard deviation of q at the start of a fit.
    """

    @property
    def size(self) -> int:
        return 2 * self.dim + len(self._below(torch.device("cpu"))[0])

    def start(self) -> Tensor:
        lam = torch.zeros(self.size)
        lam[self.dim : 2 * self.dim] = inverse_softplus(self.scale)
        return lam

    def forward(self, lam: Tensor) -> dist.MultivariateNormal:
        loc, raw_scale, lower = lam.split([self.dim, self.dim, self.size - 2 * self.dim], -1)
        scale = softplus(raw_scale)
        row, column = self._below(lam.device)
        unit = torch.ones_like(loc).diag_embed()
        unit[..., row, column] = lower
        return dist.MultivariateNormal(loc, scale_tril=scale.unsqueeze(-1) * unit)

    def inverse(self, loc: Tensor, scale_tril: Tensor) -> Tensor:
        """The λ of the Gaussian with this mean, (..., dim), and Cholesky factor, (..., dim, dim)."""
        scale = scale_tril.diagonal(dim1=-2, dim2=-1)
        row, column = self._below(loc.device)
        lower = (scale_tril / scale.unsqueeze(-1))[..., row, column]
        return torch.cat([loc, scale + (-torch.expm1(-scale)).log(), lower], -1)

    def blocks(self) -> list[list[int]]:
        return [list(range(self.dim))]

    def _below(self, device: torch.device) -> Tensor:
        """Rows and columns of the free entries of L, shape (2, entries)."""
        return torch.tril_indices(self.dim, self.dim, -1, device=device)
