"""Bayesian linear regression with known noise: a global latent whose posterior is correlated."""

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
from .gaussian import LinearGaussian
from .linear_gaussian import LinearGaussianModel

__all__ = ["LinearRegression"]


class LinearRegression(LinearGaussianModel, RegressionModel):
    r"""Regression weights h in R^p behind N responses.

        h   ~ Normal(0, prior_scale)                        in each of the p coordinates
        x_i ~ Normal(covariates_i · h, noise_scale)         i = 1 … N

    The posterior precision is diag(prior_scale⁻²) + covariatesᵀ covariates / noise_scale²: correlated covariates correlate
    the weights, so the best mean field stays below log p(x) by a known amount (`inference.best_elbo`).

    Args:
        covariates: shape (N, p).
        prior_scale: standard deviation of each weight, a number or shape (p,).
        noise_scale: standard deviation of each response given h, a number.

    Reference: Bishop, "Pattern Recognition and Machine Learning" (2006), section 3.3.
    """

    prior_scale: Tensor
    noise_scale: Tensor

    def __init__(self, covariates: Tensor, *, prior_scale: Tensor | float = 1.0, noise_scale: Tensor | float = 1.0) -> None:
        super().__init__(covariates)
        covariates = self.covariates
        features = (covariates.shape[1],)
        self.declare("prior_scale", positive("prior_scale", prior_scale, features, like=covariates), constraints.positive)
        self.declare("noise_scale", positive("noise_scale", noise_scale, (), like=covariates), constraints.positive)

    @classmethod
    def demo(cls, *, seed: int = 0) -> tuple[Self, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        common = torch.randn(40, 1, generator=generator)
        model = cls(common + 0.7 * torch.randn(40, 3, generator=generator), noise_scale=0.8)
        return model, model.simulate(40, seed=seed)[1]

    @classmethod
    def from_dataset(cls, data: Dataset) -> tuple[Self, Tensor]:
        """Standardised covariates and targets; noise_scale is the residual standard deviation of least squares."""
        covariates, x = cls.standardised(data)
        weights = torch.linalg.lstsq(covariates, x.unsqueeze(-1), driver="gelsd").solution
        residual = x - (covariates @ weights).squeeze(-1)
        return cls(covariates, noise_scale=residual.std()), x

    def prior(self) -> Tensor:
        return pyro.sample("h", dist.Normal(0.0, self.prior_scale).to_event(1))

    def likelihood(self, h: Tensor, x: Tensor | None = None, index: Tensor | None = None) -> Tensor:
        return pyro.sample("x", dist.Normal(self.predictor(h, index), self.noise_scale), obs=x)

    def linear_gaussian(self) -> LinearGaussian:
        return LinearGaussian(
            prior_loc=torch.zeros_like(self.prior_scale),
            prior_scale=self.prior_scale,
            loading=self.covariates,
            offset=self.covariates.new_zeros(self.size),
            noise_scale=self.noise_scale.expand(self.size),
        )
