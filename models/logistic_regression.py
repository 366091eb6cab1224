"""Bayesian logistic regression."""

from __future__ import annotations

from typing import Self

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor

from .arguments import positive, real
from .base import RegressionModel
from .datasets import Dataset

__all__ = ["LogisticRegression"]


class LogisticRegression(RegressionModel):
    r"""Regression weights h in R^p behind N answers, yes (1) or no (0).

        h   ~ Normal(0, prior_scale)                        in each of the p coordinates
        x_i ~ Bernoulli(sigmoid(covariates_i · h))          i = 1 … N

    Args:
        covariates: shape (N, p); a column of ones gives an intercept.
        prior_scale: standard deviation of a weight, a number or shape (p,).

    Reference: Jaakkola & Jordan, "Bayesian parameter estimation via variational methods" (2000).
    """

    support: constraints.Constraint = constraints.boolean
    prior_scale: Tensor

    def __init__(self, covariates: Tensor, *, prior_scale: Tensor | float = 1.0) -> None:
        super().__init__()
        if not isinstance(covariates, Tensor) or covariates.dim() != 2 or covariates.numel() == 0:
            raise ValueError("covariates must be a tensor of shape (N, p) with N > 0 and p > 0.")
        self.register_buffer("covariates", real("covariates", covariates, tuple(covariates.shape)))
        self.register_buffer("prior_scale", positive("prior_scale", prior_scale, (covariates.shape[1],), like=covariates))

    @classmethod
    def demo(cls, *, seed: int = 0) -> tuple[Self, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        common = torch.randn(52, 1, generator=generator)
        model = cls(common + 0.5 * torch.randn(52, 3, generator=generator), prior_scale=2.0)
        return model, model.simulate(52, seed=seed)[1]

    @classmethod
    def from_dataset(cls, data: Dataset) -> tuple[Self, Tensor]:
        """Whether the target is above its median, from an intercept and the standardised covariates."""
        if data.y is None:
            raise ValueError(f"LogisticRegression needs targets, but the data set {data.name!r} has none.")
        spread = data.x.std(0)
        covariates = ((data.x - data.x.mean(0)) / spread)[:, spread > 0]
        x = (data.y > data.y.median()).to(covariates.dtype)
        return cls(torch.cat([torch.ones_like(covariates[:, :1]), covariates], 1)), x

    @property
    def data_shape(self) -> tuple[int, ...]:
        return ()

    def prior(self) -> Tensor:
        return pyro.sample("h", dist.Normal(0.0, self.prior_scale).to_event(1))

    def likelihood(self, h: Tensor, x: Tensor | None = None, index: Tensor | None = None) -> Tensor:
        covariates = self.covariates if index is None else self.covariates[index]
        return pyro.sample("x", dist.Bernoulli(logits=(covariates * h).sum(-1)), obs=x)
