"""A Gaussian latent for each datum: the smallest local model, and the lesson's running example."""

from __future__ import annotations

from typing import Self

import pyro
import pyro.distributions as dist
from pyro.distributions import constraints
from torch import Tensor
from torch.distributions import Distribution

from .arguments import positive, real
from .base import LocalModel
from .datasets import Dataset
from .gaussian import expected_log_normal, moments

__all__ = ["LocalGaussian"]


class LocalGaussian(LocalModel):
    r"""One latent h_i in R^d behind each x_i in R^d.

        h_i ~ Normal(prior_loc, prior_scale)        in each of the d coordinates
        x_i ~ Normal(h_i, noise_scale)              i = 1 … N

    The posterior mean is linear in x_i and its standard deviation the same for every i, so a linear encoder with any Gaussian
    family reaches it exactly: approximation and amortization gap are both zero.

    Args:
        dim: d.
        prior_loc, prior_scale, noise_scale: mean and standard deviations, numbers or tensors of shape (d,).

    Reference: Murphy, "Conjugate Bayesian analysis of the Gaussian distribution" (2007), section 2, with one x for each h.
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
        model = cls(2, prior_scale=1.5, noise_scale=0.8)
        return model, model.simulate(100, seed=seed)[1]

    @classmethod
    def from_dataset(cls, data: Dataset) -> tuple[Self, Tensor]:
        x = data.x
        scale = x.std(0).clamp(min=1e-3 * float(x.std())) * 0.5**0.5
        return cls(x.shape[-1], prior_loc=x.mean(0), prior_scale=scale, noise_scale=scale), x

    @property
    def data_shape(self) -> tuple[int, ...]:
        return tuple(self.prior_loc.shape)

    def prior(self) -> Tensor:
        return pyro.sample("h", dist.Normal(self.prior_loc, self.prior_scale).to_event(1))

    def likelihood(self, h: Tensor, x: Tensor | None = None) -> Tensor:
        return pyro.sample("x", dist.Normal(h, self.noise_scale).to_event(1), obs=x)

    def posterior(self, x: Tensor) -> dist.Independent:
        self.check_data(x)
        precision = self.prior_scale**-2 + self.noise_scale**-2
        loc = (self.prior_loc * self.prior_scale**-2 + x * self.noise_scale**-2) / precision
        return dist.Normal(loc, precision**-0.5).to_event(1)

    def log_evidence(self, x: Tensor) -> Tensor:
        """log p(x_i) = log Normal(x_i; prior_loc, √(prior_scale² + noise_scale²))."""
        self.check_data(x)
        scale = (self.prior_scale**2 + self.noise_scale**2).sqrt()
        return dist.Normal(self.prior_loc, scale).log_prob(x).sum(-1)

    def expected_log_likelihood(self, q: Distribution, x: Tensor) -> Tensor:
        self.check_data(x)
        mean, covariance = moments(q)
        variance = covariance.diagonal(dim1=-2, dim2=-1)
        return expected_log_normal(x, mean, variance, self.noise_scale).sum(-1)
