"""The mean of a Gaussian with known noise: the smallest model with a global latent."""

from __future__ import annotations

from typing import Self

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import Distribution

from .datasets import Dataset
from .diagonal_gaussian import DiagonalGaussianModel
from .gaussian import reconstruction
from .precision import cast

__all__ = ["GaussianMean"]


class GaussianMean(DiagonalGaussianModel):
    r"""The unknown mean h in R^d of N observations with known noise.

        h   ~ Normal(prior_loc, prior_scale)        in each of the d coordinates
        x_i ~ Normal(h, noise_scale)                i = 1 … N

    The posterior is Normal with precision 1/prior_scale² + N/noise_scale² in each coordinate, so every Gaussian family
    contains it, mean field included.

    Args:
        dim: d.
        prior_loc: prior mean, a number or shape (d,).
        prior_scale, noise_scale: standard deviations, numbers or shape (d,).

    Reference: Murphy, "Conjugate Bayesian analysis of the Gaussian distribution" (2007), section 2.
    """

    @classmethod
    def demo(cls, *, seed: int = 0) -> tuple[Self, Tensor]:
        model = cls(3, prior_scale=2.0, noise_scale=0.7)
        return model, model.simulate(20, seed=seed)[1]

    @classmethod
    def from_dataset(cls, data: Dataset) -> tuple[Self, Tensor]:
        """The prior is Normal(mean, standard deviation) of all entries; noise_scale is each column's standard deviation."""
        x = data.x
        scale = x.std(0).clamp(min=1e-3 * float(x.std()))
        return cls(x.shape[-1], prior_loc=x.mean(), prior_scale=x.std(), noise_scale=scale), x

    def posterior(self, x: Tensor) -> dist.Independent:
        self.check_data(x)
        return cast(self._posterior(x), x.dtype)

    def log_evidence(self, x: Tensor) -> Tensor:
        """log p(x), as log p(x | m) + log p(m) − log p(m | x) at the posterior mean m."""
        self.check_data(x)
        posterior = self._posterior(x)
        h = posterior.mean
        log_prior = dist.Normal(self.prior_loc.double(), self.prior_scale.double()).log_prob(h).sum()
        log_posterior: Tensor = posterior.log_prob(h)
        return dist.Normal(h, self.noise_scale.double()).log_prob(x.double()).sum() + log_prior - log_posterior

    def expected_log_likelihood(self, q: Distribution, x: Tensor) -> Tensor:
        self.check_data(x)
        return reconstruction(q, x, self.noise_scale).sum((-2, -1))

    def _posterior(self, x: Tensor) -> dist.Independent:
        return self.posterior_given(x.sum(0, dtype=torch.float64), len(x))
