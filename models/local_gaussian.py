"""A Gaussian latent for each datum: the smallest local model."""

from __future__ import annotations

from typing import Self

import pyro.distributions as dist
from torch import Tensor
from torch.distributions import Distribution

from .base import LocalModel
from .datasets import Dataset
from .diagonal_gaussian import DiagonalGaussianModel
from .gaussian import reconstruction
from .precision import cast

__all__ = ["LocalGaussian"]


class LocalGaussian(DiagonalGaussianModel, LocalModel):
    r"""One latent h_i in R^d behind each x_i in R^d.

        h_i ~ Normal(prior_loc, prior_scale)        in each of the d coordinates
        x_i ~ Normal(h_i, noise_scale)              i = 1 … N

    The posterior mean is linear in x_i and its standard deviation the same for every i, so a linear encoder with any Gaussian
    family reaches it exactly: the approximation gap and the amortization gap are both zero.

    Args:
        dim: d.
        prior_loc: prior mean, a number or shape (d,).
        prior_scale, noise_scale: standard deviations, numbers or shape (d,).

    Reference: Murphy, "Conjugate Bayesian analysis of the Gaussian distribution" (2007), section 2, with one x for each h.
    """

    @classmethod
    def demo(cls, *, seed: int = 0) -> tuple[Self, Tensor]:
        model = cls(2, prior_scale=1.5, noise_scale=0.8)
        return model, model.simulate(100, seed=seed)[1]

    @classmethod
    def from_dataset(cls, data: Dataset) -> tuple[Self, Tensor]:
        """Each column's variance is divided equally between h and the noise."""
        x = data.x
        scale = x.std(0).clamp(min=1e-3 * float(x.std())) * 0.5**0.5
        return cls(x.shape[-1], prior_loc=x.mean(0), prior_scale=scale, noise_scale=scale), x

    def posterior(self, x: Tensor) -> dist.Independent:
        self.check_data(x)
        return cast(self.posterior_given(x, 1), x.dtype)

    def log_evidence(self, x: Tensor) -> Tensor:
        """log p(x_i) = log Normal(x_i; prior_loc, √(prior_scale² + noise_scale²)), shape (N,)."""
        self.check_data(x)
        scale = (self.prior_scale.double() ** 2 + self.noise_scale.double() ** 2).sqrt()
        return dist.Normal(self.prior_loc.double(), scale).log_prob(x.double()).sum(-1)

    def expected_log_likelihood(self, q: Distribution, x: Tensor) -> Tensor:
        self.check_data(x)
        return reconstruction(q, x, self.noise_scale).sum(-1)
