"""Bayesian logistic regression."""

from __future__ import annotations

from typing import Self

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor

from .arguments import positive
from .base import RegressionModel
from .datasets import Dataset

__all__ = ["LogisticRegression"]


class LogisticRegression(RegressionModel):
    r"""Regression weights h in R^p behind N responses, each 0 or 1.

        h   ~ Normal(0, prior_scale)                        in each of the p coordinates
        x_i ~ Bernoulli(sigmoid(covariates_i · h))          i = 1 … N

    Args:
        covariates: shape (N, p); a column of ones gives an intercept.
        prior_scale: standard deviation of each weight, a number or shape (p,).

    Reference: Jaakkola & Jordan, "Bayesian parameter estimation via variational methods" (2000).
    """

    support: constraints.Constraint = constraints.boolean
    prior_scale: Tensor

    def __init__(self, covariates: Tensor, *, prior_scale: Tensor | float = 1.0) -> None:
        super().__init__(covariates)
        covariates = self.covariates
        self.declare(
            "prior_scale", positive("prior_scale", prior_scale, (covariates.shape[1],), like=covariates), constraints.positive
        )

    @classmethod
    def demo(cls, *, seed: int = 0) -> tuple[Self, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        common = torch.randn(52, 1, generator=generator)
        model = cls(common + 0.5 * torch.randn(52, 3, generator=generator), prior_scale=2.0)
        return model, model.simulate(52, seed=seed)[1]

    @classmethod
    def from_dataset(cls, data: Dataset) -> tuple[Self, Tensor]:
        """x_i is 1 if the target is above its median; the covariates are an intercept and the standardised columns."""
        covariates, y = cls.standardised(data)
        x = (y > y.median()).to(covariates.dtype)
        return cls(torch.cat([torch.ones_like(covariates[:, :1]), covariates], 1)), x

    def prior(self) -> Tensor:
        return pyro.sample("h", dist.Normal(0.0, self.prior_scale).to_event(1))

    def likelihood(self, h: Tensor, x: Tensor | None = None, index: Tensor | None = None) -> Tensor:
        return pyro.sample("x", dist.Bernoulli(logits=self.predictor(h, index)), obs=x)
