"""What all targets share: a posterior of known shape, with no story behind it."""

from __future__ import annotations

from abc import abstractmethod
from typing import Self

import pyro
import pyro.distributions as dist
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor

from .base import Model
from .datasets import Dataset

__all__ = ["Target"]


class Target(Model):
    r"""A known distribution over R^d to approximate, in the dress of a model.

        h   ~ target
        x_i ~ Normal(0, 1)          whatever h is

    x says nothing of h, so the posterior is the target itself, log p(x) = Σ_i log Normal(x_i; 0, 1) exactly, and log p(x) −
    ELBO is KL(q ‖ target). The prior, as a guide, is exact. A subclass gives `target`, from which exact draws can be made.
    """

    @abstractmethod
    def target(self) -> TorchDistribution:
        """The distribution: batch shape (), event shape (d,), normalised."""

    @classmethod
    def demo(cls, *, seed: int = 0) -> tuple[Self, Tensor]:
        """Eight x, of no meaning. `seed` changes nothing."""
        model = cls()
        return model, next(model.buffers()).new_tensor([0.0, 0.5, -1.0, 1.5, -0.5, 1.0, -1.5, 2.0])

    @classmethod
    def from_dataset(cls, data: Dataset) -> tuple[Self, Tensor]:
        """The demo in the data's dtype: a target has no use for data."""
        model, x = cls.demo()
        return model.to(data.x.dtype), x.to(data.x.dtype)

    @property
    def data_shape(self) -> tuple[int, ...]:
        return ()

    def prior(self) -> Tensor:
        return pyro.sample("h", self.target())

    def likelihood(self, h: Tensor, x: Tensor | None = None) -> Tensor:
        return pyro.sample("x", dist.Normal(h.new_zeros(h.shape[:-1]), 1.0), obs=x)

    def posterior(self, x: Tensor) -> TorchDistribution:
        """The target."""
        self.check_data(x)
        return self.target()

    def log_evidence(self, x: Tensor) -> Tensor:
        """log p(x) = Σ_i log Normal(x_i; 0, 1), shape ()."""
        self.check_data(x)
        return dist.Normal(x.new_zeros(()), 1.0).log_prob(x).sum()
