"""posteriordb's mixture of two Gaussians, with the assignments summed out."""

from __future__ import annotations

from collections.abc import Mapping
from math import lgamma
from typing import Any, ClassVar, Self

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor

from .port import Port

__all__ = ["LowDimGaussMix", "OrderedNormal"]


class OrderedNormal(TorchDistribution):
    """`dim` independent Normal(0, scale) draws, sorted: log density Σ log Normal + log dim! for h_1 < … < h_dim."""

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}
    support = constraints.ordered_vector
    has_rsample = True

    def __init__(self, dim: int, scale: Tensor) -> None:
        self.scale = scale
        self.dim = dim
        super().__init__(scale.shape, torch.Size([dim]), validate_args=False)

    def expand(self, batch_shape: Any, _instance: Any = None) -> OrderedNormal:
        return OrderedNormal(self.dim, self.scale.expand(batch_shape))

    def rsample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008
        shape = (*sample_shape, *self.batch_shape, self.dim)
        noise = torch.randn(shape, dtype=self.scale.dtype, device=self.scale.device)
        return (self.scale.unsqueeze(-1) * noise).sort(-1).values

    def log_prob(self, value: Tensor) -> Tensor:
        density: Tensor = dist.Normal(0.0, self.scale.unsqueeze(-1)).log_prob(value).sum(-1)
        return density + lgamma(self.dim + 1)


class LowDimGaussMix(Port):
    r"""low_dim_gauss_mix: 1000 numbers from two Gaussians.

        mu    ~ Normal(0, 2) in both coordinates, sorted: mu_1 < mu_2
        sigma ~ HalfNormal(2) in both coordinates
        theta ~ Beta(5, 5)
        x_i   ~ theta Normal(mu_1, sigma_1) + (1 − theta) Normal(mu_2, sigma_2)

    sigma holds standard deviations.
    """

    entry = "low_dim_gauss_mix-low_dim_gauss_mix"
    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.tensor(2.0, dtype=torch.float64))

    @classmethod
    def from_posteriordb(cls, data: Mapping[str, Any]) -> tuple[Self, Tensor]:
        return cls(), cls.column(data, "y")

    @classmethod
    def demo(cls, *, seed: int = 0) -> tuple[Self, Tensor]:
        model = cls()
        return model, model.simulate(60, seed=seed)[1]

    @property
    def data_shape(self) -> tuple[int, ...]:
        return ()

    def prior(self) -> dict[str, Tensor]:
        five = torch.full_like(self.scale, 5.0)
        return {
            "mu": pyro.sample("mu", OrderedNormal(2, self.scale)),
            "sigma": pyro.sample("sigma", dist.HalfNormal(self.scale.expand(2)).to_event(1)),
            "theta": pyro.sample("theta", dist.Beta(five, five)),
        }

    def likelihood(self, h: dict[str, Tensor], x: Tensor | None = None) -> Tensor:
        weights = torch.stack([h["theta"], 1 - h["theta"]], -1)
        components = dist.Normal(h["mu"], h["sigma"])
        return pyro.sample("x", dist.MixtureSameFamily(dist.Categorical(weights), components), obs=x)
