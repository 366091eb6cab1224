"""Coins with unknown bias: the smallest conjugate model that is not Gaussian."""

from __future__ import annotations

from typing import Self

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor
from torch.distributions import Beta, Distribution, Independent

from .arguments import check_event, count, positive
from .base import Model
from .datasets import Dataset
from .precision import cast, widened

__all__ = ["BetaBernoulli"]


class BetaBernoulli(Model):
    r"""The biases h in (0, 1)^d of d coins, each tossed N times.

        h   ~ Beta(successes, failures)       in each of the d coordinates
        x_i ~ Bernoulli(h)                    i = 1 … N

    The posterior is Beta(successes + Σ x_i, failures + N − Σ x_i) in each coordinate.

    Args:
        dim: d.
        successes, failures: pseudo-counts of the prior, positive numbers or shape (d,).

    Reference: Gelman, Carlin, Stern, Dunson, Vehtari & Rubin, "Bayesian Data Analysis" (2013), section 2.4.
    """

    support: constraints.Constraint = constraints.boolean
    successes: Tensor
    failures: Tensor

    def __init__(self, dim: int = 1, *, successes: Tensor | float = 1.0, failures: Tensor | float = 1.0) -> None:
        super().__init__()
        dim = count("BetaBernoulli: dim", dim)
        self.declare("successes", positive("successes", successes, (dim,)), constraints.positive)
        self.declare("failures", positive("failures", failures, (dim,)), constraints.positive)

    @classmethod
    def demo(cls, *, seed: int = 0) -> tuple[Self, Tensor]:
        model = cls(3, successes=2.0, failures=3.0)
        return model, model.simulate(20, seed=seed)[1]

    @classmethod
    def from_dataset(cls, data: Dataset) -> tuple[Self, Tensor]:
        """An entry of x is 1 if the data's entry is above the middle of their range, else 0."""
        x = (data.x > (data.x.min() + data.x.max()) / 2).to(data.x.dtype)
        return cls(x.shape[-1]).to(x.dtype), x

    @property
    def data_shape(self) -> tuple[int, ...]:
        return tuple(self.successes.shape)

    def prior(self) -> Tensor:
        return pyro.sample("h", dist.Beta(self.successes, self.failures).to_event(1))

    def likelihood(self, h: Tensor, x: Tensor | None = None) -> Tensor:
        return pyro.sample("x", dist.Bernoulli(h).to_event(1), obs=x)

    def posterior(self, x: Tensor) -> dist.Independent:
        self.check_data(x)
        return cast(dist.Beta(*self._counts(x)).to_event(1), x.dtype)

    def log_evidence(self, x: Tensor) -> Tensor:
        """log p(x) = Σ_j log B(posterior pseudo-counts) − log B(prior pseudo-counts)."""
        self.check_data(x)
        return (_log_beta(*self._counts(x)) - _log_beta(self.successes.double(), self.failures.double())).sum()

    def expected_log_likelihood(self, q: Distribution, x: Tensor) -> Tensor:
        """E_q[log p(x | h)] for q = independent Betas, through E[log h] = ψ(a) − ψ(a + b)."""
        self.check_data(x)
        if not (isinstance(q, Independent) and isinstance(q.base_dist, Beta)):
            raise TypeError(f"BetaBernoulli: q must be Beta(...).to_event(1) for a closed form, but is {q}.")
        check_event(q, self.data_shape, owner="BetaBernoulli")
        q = widened(q)
        a, b = q.base_dist.concentration1, q.base_dist.concentration0
        heads = x.sum(0, dtype=torch.float64)
        log_h, log_not_h = torch.digamma(a) - torch.digamma(a + b), torch.digamma(b) - torch.digamma(a + b)
        return (heads * log_h + (len(x) - heads) * log_not_h).sum(-1)

    def _counts(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Pseudo-counts of the posterior, shape (d,), in float64."""
        heads = x.sum(0, dtype=torch.float64)
        return self.successes.double() + heads, self.failures.double() + len(x) - heads


def _log_beta(a: Tensor, b: Tensor) -> Tensor:
    return torch.lgamma(a) + torch.lgamma(b) - torch.lgamma(a + b)
