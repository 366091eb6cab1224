"""Counts with an unknown rate."""

from __future__ import annotations

from typing import Self

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor
from torch.distributions import Distribution, Gamma, Independent

from .arguments import check_event, count, positive
from .base import Model
from .datasets import Dataset
from .precision import cast, widened

__all__ = ["GammaPoisson"]


class GammaPoisson(Model):
    r"""The rates h in (0, ∞)^d of counts.

        h   ~ Gamma(shape, rate)       in each of the d coordinates, with mean shape / rate
        x_i ~ Poisson(h)               i = 1 … N

    The posterior is Gamma(shape + Σ x_i, rate + N) in each coordinate.

    Args:
        dim: d.
        shape, rate: positive numbers or shape (d,).

    Reference: Gelman, Carlin, Stern, Dunson, Vehtari & Rubin, "Bayesian Data Analysis" (2013), section 2.6.
    """

    support: constraints.Constraint = constraints.nonnegative_integer
    shape: Tensor
    rate: Tensor

    def __init__(self, dim: int = 1, *, shape: Tensor | float = 1.0, rate: Tensor | float = 1.0) -> None:
        super().__init__()
        dim = count("GammaPoisson: dim", dim)
        self.declare("shape", positive("shape", shape, (dim,)), constraints.positive)
        self.declare("rate", positive("rate", rate, (dim,)), constraints.positive)

    @classmethod
    def demo(cls, *, seed: int = 0) -> tuple[Self, Tensor]:
        model = cls(3, shape=2.0, rate=0.5)
        return model, model.simulate(20, seed=seed)[1]

    @classmethod
    def from_dataset(cls, data: Dataset) -> tuple[Self, Tensor]:
        """The data scaled to counts from 0 to 16, the range of the digits' pixels."""
        low, high = data.x.min(), data.x.max()
        x = (16 * (data.x - low) / (high - low)).round()
        return cls(x.shape[-1], shape=1.0, rate=float(1 / x.mean())).to(x.dtype), x

    @property
    def data_shape(self) -> tuple[int, ...]:
        return tuple(self.shape.shape)

    def prior(self) -> Tensor:
        return pyro.sample("h", dist.Gamma(self.shape, self.rate).to_event(1))

    def likelihood(self, h: Tensor, x: Tensor | None = None) -> Tensor:
        return pyro.sample("x", dist.Poisson(h).to_event(1), obs=x)

    def posterior(self, x: Tensor) -> dist.Independent:
        self.check_data(x)
        return cast(self._posterior(x), x.dtype)

    def log_evidence(self, x: Tensor) -> Tensor:
        """log p(x), as log p(x | m) + log p(m) − log p(m | x) at the posterior mean m."""
        self.check_data(x)
        posterior = self._posterior(x)
        h = posterior.mean
        log_prior = dist.Gamma(self.shape.double(), self.rate.double()).log_prob(h).sum()
        log_posterior: Tensor = posterior.log_prob(h)
        return dist.Poisson(h).log_prob(x.double()).sum() + log_prior - log_posterior

    def expected_log_likelihood(self, q: Distribution, x: Tensor) -> Tensor:
        """E_q[log p(x | h)] for q = independent Gammas, through E[log h] = ψ(a) − log b."""
        self.check_data(x)
        if not (isinstance(q, Independent) and isinstance(q.base_dist, Gamma)):
            raise TypeError(f"GammaPoisson: q must be Gamma(...).to_event(1) for a closed form, but is {q}.")
        check_event(q, self.data_shape, owner="GammaPoisson")
        q, x = widened(q), x.double()
        a, b = q.base_dist.concentration, q.base_dist.rate
        log_h = torch.digamma(a) - b.log()
        return (x.sum(0) * log_h - len(x) * a / b - torch.lgamma(x + 1).sum(0)).sum(-1)

    def _posterior(self, x: Tensor) -> dist.Independent:
        counts = x.sum(0, dtype=torch.float64)
        return dist.Gamma(self.shape.double() + counts, self.rate.double() + len(x)).to_event(1)
