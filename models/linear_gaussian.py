"""Models whose latents and data are jointly Gaussian."""

from __future__ import annotations

from abc import abstractmethod

import pyro.distributions as dist
from torch import Tensor
from torch.distributions import Distribution

from .base import Model
from .gaussian import LinearGaussian
from .precision import cast, widened

__all__ = ["LinearGaussianModel"]


class LinearGaussianModel(Model):
    """A model that states its `LinearGaussian` and so becomes `Tractable`."""

    @abstractmethod
    def linear_gaussian(self) -> LinearGaussian:
        """Prior, loading, offset and noise, with the current values of learned parameters."""

    def posterior(self, x: Tensor) -> dist.MultivariateNormal:
        self.check_data(x)
        return cast(self.linear_gaussian().double().posterior(x.double()), x.dtype)

    def log_evidence(self, x: Tensor) -> Tensor:
        self.check_data(x)
        return self.linear_gaussian().double().log_evidence(x.double())

    def expected_log_likelihood(self, q: Distribution, x: Tensor) -> Tensor:
        self.check_data(x)
        return self.linear_gaussian().double().expected_log_likelihood(widened(q), x.double())
