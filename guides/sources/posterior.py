"""The exact posterior as a guide: the ceiling of every comparison."""

from __future__ import annotations

import pyro
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor

from .base import ModelGuide

__all__ = ["Posterior"]


class Posterior(ModelGuide):
    """q(h | x) = p(h | x), from a model with a closed-form `posterior`. Its one-draw ELBO is log p(x), for every draw.

    Args:
        model: a `models.Tractable` model with the single latent ``"h"``.
    """

    def q(self, x: Tensor, index: Tensor | None = None) -> TorchDistribution:
        return self.model.posterior(x)

    def forward(self, x: Tensor, index: Tensor | None = None, size: int | None = None) -> Tensor:
        """Samples h ~ p(h | x)."""
        q = self.q(x)
        if not q.batch_shape:
            if index is not None:
                raise ValueError("the posterior of a global latent needs all the data: call Posterior without index.")
            return pyro.sample("h", q)
        with pyro.plate("data", len(x) if size is None else size, subsample=index, dim=-1):
            return pyro.sample("h", q)
