"""Gaussian models whose coordinates are independent and whose noise is known."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
from pyro.distributions import constraints
from torch import Tensor

from .arguments import count, positive, real
from .base import Model

__all__ = ["DiagonalGaussianModel"]


class DiagonalGaussianModel(Model):
    r"""A latent h in R^d, observed with Gaussian noise.

    h ~ Normal(prior_loc, prior_scale)        in each of the d coordinates
    x ~ Normal(h, noise_scale)
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
        dim = count(f"{type(self).__name__}: dim", dim)
        self.declare("prior_loc", real("prior_loc", prior_loc, (dim,)))
        self.declare("prior_scale", positive("prior_scale", prior_scale, (dim,)), constraints.positive)
        self.declare("noise_scale", positive("noise_scale", noise_scale, (dim,)), constraints.positive)

    @property
    def data_shape(self) -> tuple[int, ...]:
        return tuple(self.prior_loc.shape)

    def prior(self) -> Tensor:
        return pyro.sample("h", dist.Normal(self.prior_loc, self.prior_scale).to_event(1))

    def likelihood(self, h: Tensor, x: Tensor | None = None) -> Tensor:
        return pyro.sample("x", dist.Normal(h, self.noise_scale).to_event(1), obs=x)

    def posterior_given(self, total: Tensor, n: int) -> dist.Independent:
        """The posterior after `n` observations of h with the sum `total`, batch shape total.shape[:-1]; in float64."""
        prior_precision, noise_precision = self.prior_scale.double() ** -2, self.noise_scale.double() ** -2
        precision = prior_precision + n * noise_precision
        loc = (self.prior_loc.double() * prior_precision + total.double() * noise_precision) / precision
        return dist.Normal(loc, precision**-0.5).to_event(1)
