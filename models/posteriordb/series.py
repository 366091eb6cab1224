"""posteriordb's time series: each datum depends on earlier ones, so they have no data plate and take no minibatches."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Self

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor

from ..arguments import count, positive
from .flat import flat, flat_positive
from .port import Port

__all__ = ["AutoRegression", "Garch"]


class _Series(Port):
    """One series x of T steps, whose site "x" is one event, so `index` is refused."""

    def forward(self, x: Tensor | None = None, index: Tensor | None = None, size: int | None = None) -> Tensor:
        """The joint of the whole series x, which must be given."""
        if index is not None:
            raise ValueError(f"{type(self).__name__} is one series, so it takes no minibatches: leave index=None.")
        if x is None:
            raise ValueError(f"{type(self).__name__} scores a series but does not simulate one: give x.")
        return self.likelihood(self.prior(), x)

    @property
    def data_shape(self) -> tuple[int, ...]:
        return ()


class AutoRegression(_Series):
    r"""arK-arK: an autoregression of order K on 200 steps.

        alpha  ~ Normal(0, 10)
        beta   ~ Normal(0, 10)                                in each of the K coordinates
        sigma  ~ HalfCauchy(2.5)
        x_t    ~ Normal(alpha + Σ_k beta_k x_t−k, sigma)      t = K + 1 … T, given the first K

    Args:
        order: K.
    """

    entry = "arK-arK"
    scale: Tensor

    def __init__(self, order: int = 5) -> None:
        super().__init__()
        self.order = count("AutoRegression: order", order)
        self.register_buffer("scale", torch.tensor(10.0, dtype=torch.float64))

    @classmethod
    def from_posteriordb(cls, data: Mapping[str, Any]) -> tuple[Self, Tensor]:
        return cls(int(cls.column(data, "K", ()))), cls.column(data, "y")

    @classmethod
    def demo(cls, *, seed: int = 0) -> tuple[Self, Tensor]:
        """A random walk of 40 steps that returns to zero."""
        noise = torch.randn(40, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        x = [noise[0]]
        for value in noise[1:]:
            x.append(0.7 * x[-1] + 0.5 * value)
        return cls(2), torch.stack(x)

    def prior(self) -> dict[str, Tensor]:
        zero = self.scale.new_zeros(())
        return {
            "alpha": pyro.sample("alpha", dist.Normal(zero, self.scale)),
            "beta": pyro.sample("beta", dist.Normal(self.scale.new_zeros(self.order), self.scale).to_event(1)),
            "sigma": pyro.sample("sigma", dist.HalfCauchy(zero + 2.5)),
        }

    def likelihood(self, h: dict[str, Tensor], x: Tensor | None = None) -> Tensor:
        assert x is not None
        # Row t of the lags holds x_t−1 … x_t−K.
        lags = x.unfold(0, self.order, 1)[:-1].flip(-1)
        mean = h["alpha"].unsqueeze(-1) + (lags * h["beta"].unsqueeze(-2)).sum(-1)
        return pyro.sample("x", dist.Normal(mean, h["sigma"].unsqueeze(-1)).to_event(1), obs=x[self.order :])


class Garch(_Series):
    r"""garch-garch11: a series whose variance depends on earlier values.

        mu, alpha0      ~ flat on R × (0, ∞)
        (alpha1, beta1) ~ flat on the triangle alpha1, beta1 > 0, alpha1 + beta1 < 1
        sigma_t²        = alpha0 + alpha1 (x_t−1 − mu)² + beta1 sigma_t−1²,  sigma_1 given
        x_t             ~ Normal(mu, sigma_t)                                   t = 1 … T

    The support of beta1 depends on alpha1, so no fixed bijection maps it to R. The latents are therefore alpha1 ~ Beta(1, 2)
    and beta_share = beta1 / (1 − alpha1) ~ Uniform(0, 1): the same flat density on the triangle.

    Args:
        initial_scale: sigma_1, a standard deviation.
    """

    entry = "garch-garch11"
    proper: ClassVar[bool] = False
    initial_scale: Tensor

    def __init__(self, initial_scale: Tensor | float = 0.5) -> None:
        super().__init__()
        like = torch.zeros((), dtype=torch.float64)
        self.declare("initial_scale", positive("initial_scale", initial_scale, (), like=like), constraints.positive)

    @classmethod
    def from_posteriordb(cls, data: Mapping[str, Any]) -> tuple[Self, Tensor]:
        return cls(cls.column(data, "sigma1", ())), cls.column(data, "y")

    @classmethod
    def demo(cls, *, seed: int = 0) -> tuple[Self, Tensor]:
        """40 steps with variance 1."""
        return cls(), torch.randn(40, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)

    def prior(self) -> dict[str, Tensor]:
        one = torch.ones_like(self.initial_scale)
        return {
            "mu": pyro.sample("mu", flat(0 * one)),
            "alpha0": pyro.sample("alpha0", flat_positive(one)),
            "alpha1": pyro.sample("alpha1", dist.Beta(one, 2 * one)),
            "beta_share": pyro.sample("beta_share", dist.Uniform(0 * one, one)),
        }

    def likelihood(self, h: dict[str, Tensor], x: Tensor | None = None) -> Tensor:
        assert x is not None
        mu, alpha0, alpha1 = h["mu"], h["alpha0"], h["alpha1"]
        beta1 = h["beta_share"] * (1 - alpha1)
        variance = self.initial_scale.square().expand(mu.shape)
        variances = [variance]
        for value in x[:-1]:
            variance = alpha0 + alpha1 * (value - mu) ** 2 + beta1 * variance
            variances.append(variance)
        scale = torch.stack(variances, -1).sqrt()
        return pyro.sample("x", dist.Normal(mu.unsqueeze(-1), scale).to_event(1), obs=x)

    def quantities(self, h: Mapping[str, Tensor]) -> dict[str, Tensor]:
        beta1 = h["beta_share"] * (1 - h["alpha1"])
        return {"mu": h["mu"], "alpha0": h["alpha0"], "alpha1": h["alpha1"], "beta1": beta1}

    def latents(self, quantities: Mapping[str, Tensor]) -> dict[str, Tensor]:
        found = {name: quantities[name] for name in ("mu", "alpha0", "alpha1")}
        return {**found, "beta_share": quantities["beta1"] / (1 - quantities["alpha1"])}
