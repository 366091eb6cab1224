"""posteriordb's Gaussian process with unknown hyperparameters and the function integrated out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from ..arguments import vector
from .port import Port

__all__ = ["GPRegression"]


class GPRegression(Port):
    r"""gp_pois_regr-gp_regr: lengthscale, scale and noise *variance* of a Gaussian process at 11 inputs.

        rho   ~ Gamma(25, 4)               lengthscale
        alpha ~ HalfNormal(2)              standard deviation of the function
        sigma ~ HalfNormal(1)              variance of the noise, in spite of posteriordb's name
        x     ~ Normal(0, alpha² exp(−(z_i − z_j)² / (2 rho²)) + sigma I)

    Args:
        places: the inputs z, shape (N,).
    """

    entry = "gp_pois_regr-gp_regr"
    places: Tensor

    def __init__(self, places: Tensor) -> None:
        super().__init__()
        self.declare("places", vector("places", places, "N"))

    @classmethod
    def from_posteriordb(cls, data: Mapping[str, Any]) -> tuple[Self, Tensor]:
        return cls(cls.column(data, "x")), cls.column(data, "y")

    @classmethod
    def demo(cls, *, seed: int = 0) -> tuple[Self, Tensor]:
        model = cls(torch.linspace(-5.0, 5.0, 8, dtype=torch.float64))
        return model, model.simulate(8, seed=seed)[1]

    @property
    def data_shape(self) -> tuple[int, ...]:
        return ()

    def forward(self, x: Tensor | None = None, index: Tensor | None = None, size: int | None = None) -> Tensor:
        """The joint. Without the function the data are dependent, so there are no minibatches."""
        if index is not None:
            raise ValueError("GPRegression has dependent data, so it takes no minibatches: leave index=None.")
        return self.likelihood(self.prior(), x)

    def prior(self) -> dict[str, Tensor]:
        one = self.places.new_ones(())
        return {
            "rho": pyro.sample("rho", dist.Gamma(25 * one, 4 * one)),
            "alpha": pyro.sample("alpha", dist.HalfNormal(2 * one)),
            "sigma": pyro.sample("sigma", dist.HalfNormal(one)),
        }

    def likelihood(self, h: dict[str, Tensor], x: Tensor | None = None) -> Tensor:
        rho, alpha, sigma = (h[name].unsqueeze(-1).unsqueeze(-1) for name in ("rho", "alpha", "sigma"))
        squared = (self.places.unsqueeze(-1) - self.places).square()
        identity = torch.eye(len(self.places), dtype=squared.dtype, device=squared.device)
        covariance = alpha**2 * torch.exp(-0.5 * squared / rho**2) + sigma * identity
        return pyro.sample("x", dist.MultivariateNormal(torch.zeros_like(self.places), covariance), obs=x)
