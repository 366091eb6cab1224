"""Gaussian process regression: as many correlated latents as data, and an exact evidence to compare a sparse bound with."""

from __future__ import annotations

from typing import Self

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor
from torch.distributions import Distribution

from .arguments import number, positive
from .base import RegressionModel
from .datasets import Dataset
from .gaussian import reconstruction
from .precision import cast

__all__ = ["GaussianProcess"]


class GaussianProcess(RegressionModel):
    r"""The values h in R^N of a smooth function at N inputs.

        K_ij = scale² exp(−|covariates_i − covariates_j|² / (2 lengthscale²)) + jitter 1[covariates_i = covariates_j]
        h   ~ Normal(0, K)
        x_i ~ Normal(h_i, noise_scale)              i = 1 … N

    The posterior is Gaussian and dense. For large N a sparse bound through M inducing inputs costs O(N M²) instead of O(N³);
    here it can be compared with the exact evidence (`sparse_elbo`).

    Args:
        covariates: the inputs, shape (N, p).
        lengthscale: a positive number, in the unit of the inputs.
        scale: standard deviation of the function, a positive number.
        noise_scale: standard deviation of x_i given h_i, a positive number.
        jitter: variance that keeps K positive definite in floating point, in units of scale².

    References: Rasmussen & Williams, "Gaussian Processes for Machine Learning" (2006), chapter 2; Titsias, "Variational
    learning of inducing variables in sparse Gaussian processes" (2009).
    """

    lengthscale: Tensor
    scale: Tensor
    noise_scale: Tensor

    def __init__(
        self,
        covariates: Tensor,
        *,
        lengthscale: Tensor | float = 1.0,
        scale: Tensor | float = 1.0,
        noise_scale: Tensor | float = 1.0,
        jitter: float = 1e-4,
    ) -> None:
        super().__init__(covariates)
        covariates = self.covariates
        self.jitter = number("GaussianProcess: jitter", jitter, above=0)
        self.declare("lengthscale", positive("lengthscale", lengthscale, (), like=covariates), constraints.positive)
        self.declare("scale", positive("scale", scale, (), like=covariates), constraints.positive)
        self.declare("noise_scale", positive("noise_scale", noise_scale, (), like=covariates), constraints.positive)

    @classmethod
    def demo(cls, *, seed: int = 0) -> tuple[Self, Tensor]:
        model = cls(torch.linspace(0.0, 4.0, 8).unsqueeze(-1), lengthscale=0.6, noise_scale=0.5, jitter=0.01)
        return model, model.simulate(8, seed=seed)[1]

    @classmethod
    def from_dataset(cls, data: Dataset, *, rows: int = 100) -> tuple[Self, Tensor]:
        """The first `rows` rows of the standardised covariates and targets."""
        covariates, x = (part[:rows] for part in cls.standardised(data))
        return cls(covariates, lengthscale=2 * covariates.shape[1] ** 0.5, noise_scale=0.7), x

    def prior(self) -> Tensor:
        scale_tril = torch.linalg.cholesky(self.covariance(self.covariates, self.covariates))
        return pyro.sample("h", dist.MultivariateNormal(torch.zeros_like(scale_tril[0]), scale_tril=scale_tril))

    def likelihood(self, h: Tensor, x: Tensor | None = None, index: Tensor | None = None) -> Tensor:
        # h is one function for all data, so its last dimension becomes the dimension of the data plate.
        mean = (h if index is None else h[..., index]).squeeze(-2) if h.dim() > 1 else h if index is None else h[index]
        return pyro.sample("x", dist.Normal(mean, self.noise_scale), obs=x)

    def posterior(self, x: Tensor) -> dist.MultivariateNormal:
        """N(C x / noise_scale², C) with C = (K⁻¹ + I / noise_scale²)⁻¹ = L (I + LᵀL / noise_scale²)⁻¹ Lᵀ, where K = L Lᵀ."""
        self.check_data(x)
        noise = self.noise_scale.double() ** 2
        lower = torch.linalg.cholesky(self._prior_covariance())
        inner = torch.eye(len(x)).to(lower) + lower.mT @ lower / noise
        scale_tril = lower @ torch.linalg.cholesky(torch.linalg.inv(inner))
        loc = scale_tril @ (scale_tril.mT @ x.double()) / noise
        return cast(dist.MultivariateNormal(loc, scale_tril=scale_tril), x.dtype)

    def log_evidence(self, x: Tensor) -> Tensor:
        """log N(x; 0, K + noise_scale² I)."""
        self.check_data(x)
        x = x.double()
        return dist.MultivariateNormal(torch.zeros_like(x), self._prior_covariance() + self._noise(len(x))).log_prob(x)

    def expected_log_likelihood(self, q: Distribution, x: Tensor) -> Tensor:
        self.check_data(x)
        return reconstruction(q, x, self.noise_scale).sum(-1)

    def covariance(self, a: Tensor, b: Tensor) -> Tensor:
        """K between the inputs `a`, shape (n, p), and `b`, shape (m, p): shape (n, m)."""
        squared = (a.unsqueeze(-2) - b.unsqueeze(-3)).square().sum(-1)
        kernel = torch.exp(-0.5 * squared / self.lengthscale.to(a.dtype) ** 2) + self.jitter * (squared == 0)
        return self.scale.to(a.dtype) ** 2 * kernel

    def sparse_elbo(self, inducing: Tensor, x: Tensor) -> Tensor:
        r"""The highest ELBO through the function's values at the inputs `inducing`, shape (M, p), in closed form.

        log N(x; 0, Q + noise_scale² I) − tr(K − Q) / (2 noise_scale²) with Q = K_nm K_mm⁻¹ K_mn (Titsias 2009, equation 9).
        It equals log p(x) if `inducing` holds all the covariates, and is lower otherwise.
        """
        projected = self._projected(inducing, x)
        explained = projected.mT @ projected
        x = x.double()
        evidence = dist.MultivariateNormal(torch.zeros_like(x), explained + self._noise(len(x))).log_prob(x)
        unexplained = len(x) * self.scale.double() ** 2 * (1 + self.jitter) - explained.diagonal().sum()
        return evidence - 0.5 * unexplained / self.noise_scale.double() ** 2

    def sparse_posterior(self, inducing: Tensor, x: Tensor) -> dist.MultivariateNormal:
        """The q(h) whose ELBO is `sparse_elbo`, if the inputs `inducing` are among the covariates."""
        projected = self._projected(inducing, x)
        noise = self.noise_scale.double() ** 2
        inner = torch.eye(len(inducing)).to(projected) + projected @ projected.mT / noise
        mean = projected.mT @ torch.linalg.solve(inner, projected @ x.double()) / noise
        covariance = self._prior_covariance() - projected.mT @ projected
        covariance = covariance + projected.mT @ torch.linalg.solve(inner, projected)
        return cast(dist.MultivariateNormal(mean, (covariance + covariance.mT) / 2), x.dtype)

    def _projected(self, inducing: Tensor, x: Tensor) -> Tensor:
        """L⁻¹ K_mn with K_mm = L Lᵀ, shape (M, N), in float64."""
        self.check_data(x)
        inducing = inducing.double()
        lower = torch.linalg.cholesky(self.covariance(inducing, inducing))
        return torch.linalg.solve_triangular(lower, self.covariance(inducing, self.covariates.double()), upper=False)

    def _prior_covariance(self) -> Tensor:
        """K between the covariates, in float64."""
        covariates = self.covariates.double()
        return self.covariance(covariates, covariates)

    def _noise(self, n: int) -> Tensor:
        noise = self.noise_scale.double() ** 2
        return noise * torch.eye(n).to(noise)
