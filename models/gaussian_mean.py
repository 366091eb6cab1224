"""The mean of a Gaussian with known noise: the smallest model with a global latent."""

from __future__ import annotations

from typing import Self

import pyro
import pyro.distributions as dist
from pyro.distributions import constraints
from torch import Tensor
from torch.distributions import Distribution

from .arguments import positive, real
from .base import Model
from .datasets import Dataset
from .gaussian import expected_log_normal, moments

__all__ = ["GaussianMean"]


class GaussianMean(Model):
    r"""The unknown mean h in R^d of N observations with known noise.

        h   ~ Normal(prior_loc, prior_scale)        in each of the d coordinates
        x_i ~ Normal(h, noise_scale)                i = 1 … N

    The posterior is Normal with precision 1/prior_scale² + N/noise_scale² in each coordinate, so it is in every Gaussian
    family, mean field included.

    Args:
        dim: d.
        prior_loc, prior_scale, noise_scale: mean and standard deviations, numbers or tensors of shape (d,).

    Reference: Murphy, "Conjugate Bayesian analysis of the Gaussian distribution" (2007), section 2.
    """

    prior_loc: Tensor
    prior_scale: Tensor
    noise_scale: Tensor

    def __init__(
        self,
        dim: int = 1,
        *,
        prior_loc: Tensor | float = 0.0,
        prior_scale: Tensor | float = 1.0,
        noise_scale: Tensor | float = 1.0,
    ) -> None:
        super().__init__()
        self.declare("prior_loc", real("prior_loc", prior_loc, (dim,)))
        self.declare("prior_scale", positive("prior_scale", prior_scale, (dim,)), constraints.positive)
        self.declare("noise_scale", positive("noise_scale", noise_scale, (dim,)), constraints.positive)

    @classmethod
    def demo(cls, *, seed: int = 0) -> tuple[Self, Tensor]:
        model = cls(3, prior_scale=2.0, noise_scale=0.7)
        return model, model.simulate(20, seed=seed)[1]

    @classmethod
    def from_dataset(cls, data: Dataset) -> tuple[Self, Tensor]:
        x = data.x
        scale = x.std(0).clamp(min=1e-3 * float(x.std()))
        return cls(x.shape[-1], prior_loc=x.mean(), prior_scale=x.std(), noise_scale=scale), x

    @property
    def data_shape(self) -> tuple[int, ...]:
        return tuple(self.prior_loc.shape)

    def prior(self) -> Tensor:
        return pyro.sample("h", dist.Normal(self.prior_loc, self.prior_scale).to_event(1))

    def likelihood(self, h: Tensor, x: Tensor | None = None) -> Tensor:
        return pyro.sample("x", dist.Normal(h, self.noise_scale).to_event(1), obs=x)

    def posterior(self, x: Tensor) -> dist.Independent:
        self.check_data(x)
        precision = self.prior_scale**-2 + len(x) * self.noise_scale**-2
        loc = (self.prior_loc * self.prior_scale**-2 + x.sum(0) * self.noise_scale**-2) / precision
        return dist.Normal(loc, precision**-0.5).to_event(1)

    def log_evidence(self, x: Tensor) -> Tensor:
        """log p(x), as log p(x | m) + log p(m) − log p(m | x) at the posterior mean m."""
        posterior = self.posterior(x)
        h = posterior.mean
        log_prior = dist.Normal(self.prior_loc, self.prior_scale).log_prob(h).sum()
        log_posterior: Tensor = posterior.log_prob(h)
        return dist.Normal(h, self.noise_scale).log_prob(x).sum() + log_prior - log_posterior

    def expected_log_likelihood(self, q: Distribution, x: Tensor) -> Tensor:
        self.check_data(x)
        mean, covariance = moments(q)
        variance = covariance.diagonal(dim1=-2, dim2=-1)
        return expected_log_normal(x, mean, variance, self.noise_scale).sum((-2, -1))
