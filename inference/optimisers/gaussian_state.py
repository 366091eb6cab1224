"""The state of a solver that moves a Gaussian."""

from __future__ import annotations

from math import log, pi
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributions import MultivariateNormal, kl_divergence

from guides import Family
from models.gaussian import mean_and_covariance

__all__ = ["GaussianState", "block_mask", "scale_tril"]


class GaussianState(NamedTuple):
    """A Gaussian q by its mean, shape (*batch, dim), and a matrix M, shape (*batch, dim, dim).

    The precision of q consists of the blocks of M that the family can represent; the other entries of M are not part of q.
    """

    loc: Tensor
    precision: Tensor
    """M."""
    blocks: Tensor
    """1 where the family has correlations, else 0, shape (dim, dim)."""

    @classmethod
    def of(cls, q: Any, family: Family) -> GaussianState:
        loc, covariance = (part.detach().double() for part in mean_and_covariance(q))
        return cls(loc.clone(), torch.linalg.inv(covariance), block_mask(family, loc))

    def minus(self, other: GaussianState) -> GaussianState:
        """The direction from `other` to this state."""
        return GaussianState(self.loc - other.loc, self.precision - other.precision, self.blocks)

    @property
    def root(self) -> Tensor:
        """The Cholesky factor of q's covariance, shape (*batch, dim, dim)."""
        return scale_tril(self.precision * self.blocks)

    @property
    def entropy(self) -> float:
        """The entropy of q, in nats, summed over the batch."""
        logs = self.root.diagonal(dim1=-2, dim2=-1).log().sum()
        return float(logs) + 0.5 * self.loc.numel() * (1 + log(2 * pi))

    def kl(self, other: GaussianState) -> float:
        """KL(q ‖ q of `other`), in nats, summed over the batch."""
        one, two = (MultivariateNormal(s.loc, precision_matrix=s.precision * s.blocks) for s in (self, other))
        return float(kl_divergence(one, two).sum())

    def inner(self, one: GaussianState, other: GaussianState) -> float:
        """The inner product of two directions in the Fisher information of q, except that the mean's is the whole M."""
        mean = (one.loc.unsqueeze(-2) @ self.precision @ other.loc.unsqueeze(-1)).sum()
        parts = [torch.linalg.solve(self.precision * self.blocks, d.precision * self.blocks) for d in (one, other)]
        return float(mean + 0.5 * (parts[0] * parts[1].mT).sum())


def block_mask(family: Family, like: Tensor) -> Tensor:
    """1 where the family can correlate two coordinates, else 0, shape (dim, dim), of the dtype of `like`."""
    blocks = family.blocks()
    assert blocks is not None
    mask = torch.zeros(family.dim, family.dim, dtype=like.dtype)
    for block in blocks:
        mask[torch.tensor(block).unsqueeze(-1), torch.tensor(block)] = 1
    return mask


def scale_tril(precision: Tensor) -> Tensor:
    """The Cholesky factor of the covariance, shape (*batch, dim, dim)."""
    return torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(precision)))
