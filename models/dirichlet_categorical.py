"""Categories with unknown frequencies: the smallest model whose latent lies on a simplex."""

from __future__ import annotations

from typing import Self

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor
from torch.distributions import Dirichlet, Distribution

from .arguments import check_event, count, positive
from .base import Model
from .datasets import Dataset
from .precision import cast, widened

__all__ = ["DirichletCategorical"]


class DirichletCategorical(Model):
    r"""The frequencies h of k categories.

        h   ~ Dirichlet(concentration)
        x_i ~ OneHotCategorical(h)            i = 1 … N, a row with a single 1

    The posterior is Dirichlet(concentration + Σ x_i).

    Args:
        categories: k, at least 2.
        concentration: pseudo-counts of the prior, a positive number or shape (k,).

    Reference: Gelman, Carlin, Stern, Dunson, Vehtari & Rubin, "Bayesian Data Analysis" (2013), section 3.4.
    """

    support: constraints.Constraint = constraints.one_hot
    concentration: Tensor

    def __init__(self, categories: int = 2, *, concentration: Tensor | float = 1.0) -> None:
        super().__init__()
        categories = count("DirichletCategorical: categories", categories, least=2)
        self.declare("concentration", positive("concentration", concentration, (categories,)), constraints.positive)

    @classmethod
    def demo(cls, *, seed: int = 0) -> tuple[Self, Tensor]:
        model = cls(4, concentration=2.0)
        return model, model.simulate(32, seed=seed)[1]

    @classmethod
    def from_dataset(cls, data: Dataset) -> tuple[Self, Tensor]:
        """The labels if they are integers, else the position of the largest entry in each row."""
        labels = data.x.argmax(-1) if data.y is None or data.y.is_floating_point() else data.y - data.y.min()
        x = torch.nn.functional.one_hot(labels).to(data.x.dtype)
        return cls(x.shape[-1]).to(x.dtype), x

    @property
    def data_shape(self) -> tuple[int, ...]:
        return tuple(self.concentration.shape)

    def prior(self) -> Tensor:
        return pyro.sample("h", dist.Dirichlet(self.concentration))

    def likelihood(self, h: Tensor, x: Tensor | None = None) -> Tensor:
        return pyro.sample("x", dist.OneHotCategorical(h), obs=x)

    def posterior(self, x: Tensor) -> dist.Dirichlet:
        self.check_data(x)
        return cast(dist.Dirichlet(self._counts(x)), x.dtype)

    def log_evidence(self, x: Tensor) -> Tensor:
        """log p(x) = log B(concentration + Σ x_i) − log B(concentration)."""
        self.check_data(x)
        return _log_beta(self._counts(x)) - _log_beta(self.concentration.double())

    def expected_log_likelihood(self, q: Distribution, x: Tensor) -> Tensor:
        """E_q[log p(x | h)] for q = Dirichlet, through E[log h_j] = ψ(a_j) − ψ(Σ a)."""
        self.check_data(x)
        if not isinstance(q, Dirichlet):
            raise TypeError(f"DirichletCategorical: q must be a Dirichlet for a closed form, but is {q}.")
        check_event(q, self.data_shape, owner="DirichletCategorical")
        a = widened(q).concentration
        counts = x.sum(0, dtype=torch.float64)
        return (counts * (torch.digamma(a) - torch.digamma(a.sum(-1, keepdim=True)))).sum(-1)

    def _counts(self, x: Tensor) -> Tensor:
        """Pseudo-counts of the posterior, shape (k,), in float64."""
        return self.concentration.double() + x.sum(0, dtype=torch.float64)


def _log_beta(a: Tensor) -> Tensor:
    return torch.lgamma(a).sum(-1) - torch.lgamma(a.sum(-1))
