"""Probabilistic PCA: factor analysis with one noise scale, whose maximum likelihood has a closed form."""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor

from .datasets import Dataset
from .factor_analysis import FactorAnalysis

__all__ = ["ProbabilisticPCA"]


class ProbabilisticPCA(FactorAnalysis):
    r"""Factors h_i in R^k behind each x_i in R^d, with isotropic noise.

        h_i ~ Normal(0, I_k)
        x_i ~ Normal(loading h_i + mean, noise_scale)       i = 1 … N, one noise_scale for all d coordinates

    Args:
        loading: shape (d, k).
        mean: a number or shape (d,).
        noise_scale: standard deviation of every coordinate, a number. As in `FactorAnalysis`, a `torch.nn.Parameter` is
            learned.

    Reference: Tipping & Bishop, "Probabilistic principal component analysis", JRSS B 61 (1999).
    """

    isotropic = True

    @classmethod
    def maximum_likelihood(cls, x: Tensor, factors: int) -> Self:
        r"""The model with `factors` factors that maximises log p(x) for x of shape (N, d).

        With λ_1 ≥ … ≥ λ_d the eigenvalues of the covariance of x (divided by N) and u_j its eigenvectors,
        noise_scale² = mean of λ_{k+1} … λ_d and loading_j = u_j √(λ_j − noise_scale²) (equations 7 and 8). The result is
        computed in float64 and has the dtype of `x`.

        Raises:
            ValueError: if `factors` is not in 1 … d − 1, or the factors leave no variance for the noise.
        """
        if x.dim() != 2 or not 1 <= factors < x.shape[1]:
            raise ValueError(
                f"ProbabilisticPCA: {factors} factors cannot be fitted to x of shape {tuple(x.shape)}: give at least 1, and "
                "fewer than the columns of x."
            )
        mean = x.double().mean(0)
        covariance = (x.double() - mean).mT @ (x.double() - mean) / len(x)
        values, vectors = torch.linalg.eigh(covariance)
        variance = values[:-factors].mean()
        if not variance > 1e-12 * values[-1]:
            raise ValueError(
                f"ProbabilisticPCA: {factors} factors explain all variance of x, so noise_scale would be zero: use fewer."
            )
        loading = vectors[:, -factors:] * (values[-factors:] - variance).clamp(min=0.0).sqrt()
        return cls(loading.flip(1).to(x.dtype), mean.to(x.dtype), variance.sqrt().to(x.dtype))

    @classmethod
    def from_dataset(cls, data: Dataset, *, factors: int | None = None) -> tuple[Self, Tensor]:
        """The maximum-likelihood model; `factors` is by default 8, or columns − 1 if fewer."""
        factors = min(8, data.x.shape[-1] - 1) if factors is None else factors
        return cls.maximum_likelihood(data.x, factors), data.x
