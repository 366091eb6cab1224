"""A Gaussian with a diagonal plus low-rank covariance."""

from __future__ import annotations

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.nn.functional import softplus

from ..arguments import count
from .base import Family, inverse_softplus

__all__ = ["LowRank"]


class LowRank(Family):
    """A Gaussian with covariance diag(scale²) + diag(scale) F Fᵀ diag(scale): λ = (loc, softplus⁻¹ scale, F).

    With rank ≥ dim − 1 the family contains every Gaussian. F starts small but not at zero, where its gradient vanishes.

    Args:
        rank: number of columns of F.
        scale: standard deviation of q at the start of a fit, without the part of F.

    Raises:
        ValueError: if rank or scale is not positive.
    """

    def __init__(self, rank: int = 1, *, scale: float = 0.1) -> None:
        super().__init__(scale=scale)
        self.rank = count("LowRank: rank", rank)

    @property
    def size(self) -> int:
        return self.dim * (2 + self.rank)

    def start(self) -> Tensor:
        loc, raw_scale = torch.zeros(self.dim), torch.full((self.dim,), inverse_softplus(self.scale))
        return torch.cat([loc, raw_scale, 0.1 * torch.eye(self.dim, self.rank).flatten()])

    def forward(self, lam: Tensor) -> dist.LowRankMultivariateNormal:
        loc, raw_scale, factor = lam.split([self.dim, self.dim, self.dim * self.rank], -1)
        scale = softplus(raw_scale)
        factor = scale.unsqueeze(-1) * factor.unflatten(-1, (self.dim, self.rank))
        return dist.LowRankMultivariateNormal(loc, factor, scale**2)

    def blocks(self) -> list[list[int]] | None:
        return [list(range(self.dim))] if self.rank >= self.dim - 1 else None
