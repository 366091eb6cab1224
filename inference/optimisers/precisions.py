"""Gaussians by their precision, of which a family keeps some blocks."""

from __future__ import annotations

import torch
from torch import Tensor

from guides import Family

__all__ = ["block_mask", "scale_tril"]


def block_mask(family: Family, like: Tensor) -> Tensor:
    """1 where the family can correlate two coordinates, else 0, shape (dim, dim), of the dtype of `like`."""
    blocks = family.blocks()
    assert blocks is not None
    mask = torch.zeros(family.dim, family.dim, dtype=like.dtype)
    for block in blocks:
        mask[torch.tensor(block).unsqueeze(-1), torch.tensor(block)] = 1
    return mask


def scale_tril(precision: Tensor) -> Tensor:
    """The Cholesky factor of the covariance, shape (*, dim, dim)."""
    return torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(precision)))
