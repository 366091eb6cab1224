"""Models and guides as plain Pyro functions, each made anew for a fit together with its data."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

__all__ = ["bernoulli", "gamma_beta", "local_normal", "net", "normal_in_minibatches", "schools"]

POSITIVE = dist.constraints.positive


def local_normal() -> tuple[Any, Any, Tensor]:
    """One Normal latent for each datum, its λ in `pyro.param`."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            h = pyro.sample("h", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(h, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        loc = pyro.param("loc", torch.zeros(len(x)))
        scale = pyro.param("scale", torch.ones(len(x)), constraint=POSITIVE)
        with pyro.plate("data", len(x)):
            pyro.sample("h", dist.Normal(loc, scale))

    return model, guide, torch.randn(20)


def normal_in_minibatches() -> tuple[Any, Any, Tensor]:
    """One Normal latent for all data; the plate takes the rows of a minibatch, the mean of the prior is learned."""

    def model(x: Tensor, index: Tensor | None = None, size: int | None = None) -> None:
        h = pyro.sample("h", dist.Normal(pyro.param("prior_loc", torch.zeros(())), 1.0))
        with pyro.plate("data", len(x) if size is None else size, subsample=index):
            pyro.sample("x", dist.Normal(h, 1.0), obs=x)

    def guide(x: Tensor, index: Tensor | None = None, size: int | None = None) -> None:  # noqa: ARG001 - Pyro's contract
        scale = pyro.param("scale", torch.ones(()), constraint=POSITIVE)
        pyro.sample("h", dist.Normal(pyro.param("loc", torch.zeros(())), scale))

    return model, guide, torch.randn(40)


def gamma_beta() -> tuple[Any, Any, Tensor]:
    """Draws of Gamma and Beta, whose gradients are implicit."""

    def model(x: Tensor) -> None:
        rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
        share = pyro.sample("share", dist.Beta(2.0, 2.0))
        pyro.sample("x", dist.Normal(rate * share, 1.0).expand(x.shape).to_event(1), obs=x)

    def guide(_: Tensor) -> None:
        a = pyro.param("a", torch.tensor(2.0), constraint=POSITIVE)
        b = pyro.param("b", torch.tensor(3.0), constraint=POSITIVE)
        pyro.sample("rate", dist.Gamma(a, b))
        pyro.sample("share", dist.Beta(a, b))

    return model, guide, 1.0 + torch.randn(5)


def bernoulli() -> tuple[Any, Any, Tensor]:
    """A zero or one for each datum."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            h = pyro.sample("h", dist.Bernoulli(0.3))
            pyro.sample("x", dist.Normal(h, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        logits = pyro.param("logits", torch.zeros(len(x)))
        with pyro.plate("data", len(x)):
            pyro.sample("h", dist.Bernoulli(logits=logits))

    return model, guide, torch.linspace(-1.0, 2.0, 7)


def net() -> tuple[Any, Any, Tensor]:
    """A VAE by `pyro.module`."""
    encoder = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4))
    decoder = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 6))

    def model(x: Tensor) -> None:
        pyro.module("decoder", decoder)
        with pyro.plate("data", len(x)):
            h = pyro.sample("h", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=decoder(h)).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        pyro.module("encoder", encoder)
        with pyro.plate("data", len(x)):
            loc, raw = encoder(x).chunk(2, -1)
            pyro.sample("h", dist.Normal(loc, raw.exp()).to_event(1))

    return model, guide, torch.rand(30, 6).round()


def schools(guide_class: Any) -> tuple[Any, Any, tuple[Tensor, Tensor]]:
    """Eight schools as a function of two arguments, with one of Pyro's autoguides."""

    def model(y: Tensor, sigma: Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
        tau = pyro.sample("tau", dist.HalfCauchy(5.0))
        with pyro.plate("schools", len(y)):
            effect = pyro.sample("effect", dist.Normal(0.0, 1.0))
            pyro.sample("y", dist.Normal(mu + tau * effect, sigma), obs=y)

    y = torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
    return model, guide_class(model), (y, torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0]))
