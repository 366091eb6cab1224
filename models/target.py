"""The base class of targets: models whose posterior is a chosen distribution."""

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
    r"""A known distribution over R^d to approximate, written as a model.

        h   ~ target
        x_i ~ Normal(0, 1)          independent of h

    x carries no information about h, so the posterior is the target, log p(x) = Σ_i log Normal(x_i; 0, 1) exactly, and
    log p(x) − ELBO is KL(q ‖ target). The prior as a guide is exact. A subclass defines `target`, with exact draws.
    """

    @abstractmethod
    def target(self) -> TorchDistribution:
        """The normalised distribution: batch shape (), event shape (d,)."""

    @classmethod
    def demo(cls, *, seed: int = 0) -> tuple[Self, Tensor]:
        """The default target and eight arbitrary x, the same for every `seed`."""
        model = cls()
        return model, next(model.buffers()).new_tensor([0.0, 0.5, -1.0, 1.5, -0.5, 1.0, -1.5, 2.0])

    @classmethod
    def from_dataset(cls, data: Dataset) -> tuple[Self, Tensor]:
        """The demo in the data's dtype; the values of the data are not used."""
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
        return dist.Normal(x.new_zeros(()).double(), 1.0).log_prob(x.double()).sum()
