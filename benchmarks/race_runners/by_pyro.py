"""The cases as Pyro programs, run by `SVI.step` or by an engine of this suite."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoMultivariateNormal, AutoNormal
from torch import Tensor

from guides import MLP, Amortized, MeanField
from inference import fit, fit_many
from inference.engine import Engine
from models import VAE, decoders

from .data import BATCH, RATE, data

__all__ = ["by_engine", "by_engine_together", "by_svi"]


def local(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        h = pyro.sample("h", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(h, 1.0), obs=x)


def local_guide(x: Tensor) -> None:
    loc = pyro.param("loc", torch.zeros(len(x)))
    scale = pyro.param("scale", torch.ones(len(x)), constraint=dist.constraints.positive)
    with pyro.plate("data", len(x)):
        pyro.sample("h", dist.Normal(loc, scale))


def schools(y: Tensor, sigma: Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("schools", len(y)):
        effect = pyro.sample("effect", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(mu + tau * effect, sigma), obs=y)


def logistic(inputs: Tensor, y: Tensor) -> None:
    w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([inputs.shape[1]]).to_event(1))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Bernoulli(logits=inputs @ w), obs=y)


def pair(case: str) -> tuple[Any, Any]:
    """Model and guide of a case."""
    if case in ("d", "e", "f"):
        pixels, size, hidden = (784, 50, (200, 200)) if case == "f" else (64, 8, (200,))
        model = VAE((pixels,), size, decoder=decoders.MLP(hidden))
        return model, Amortized(model, MeanField(), MLP(hidden))
    return {
        "a": (local, local_guide),
        "b1": (schools, AutoNormal(schools)),
        "b2": (schools, AutoMultivariateNormal(schools)),
        "c": (logistic, AutoMultivariateNormal(logistic)),
    }[case]


def by_engine(engine: type[Engine], case: str, steps: int) -> Tensor:
    """The losses of a fit by `engine`, shape (steps,)."""
    torch.manual_seed(0)
    model, guide = pair(case)
    x = tuple(map(torch.from_numpy, data(case)))
    return fit(model, guide, x, steps=steps, lr=RATE, schedule=None, engine=engine, batch_size=BATCH.get(case)).nelbo


def by_engine_together(engine: type[Engine], seeds: int, case: str, steps: int) -> Tensor:
    """The losses of simultaneous fits, one for each seed, shape (seeds, steps)."""
    torch.manual_seed(0)
    pairs = [pair(case) for _ in range(seeds)]
    x = tuple(map(torch.from_numpy, data(case)))
    options = {"steps": steps, "lr": RATE, "schedule": None, "engine": engine, "batch_size": BATCH.get(case)}
    return torch.stack([done.nelbo for done in fit_many(pairs, x, seeds=range(seeds), **options)])


def by_svi(case: str, steps: int) -> Tensor:
    """The losses of the loop in Pyro's tutorials, without argument checks, which `fit` also switches off."""
    pyro.enable_validation(False)
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    model, guide = pair(case)
    args = tuple(map(torch.from_numpy, data(case)))
    svi = SVI(model, guide, pyro.optim.Adam({"lr": RATE}), Trace_ELBO())
    losses = []
    while len(losses) < steps:
        if case not in BATCH:
            losses.append(svi.step(*args))
            continue
        for index in torch.randperm(len(args[0])).split(BATCH[case])[: steps - len(losses)]:
            losses += [svi.step(args[0][index], index=index, size=len(args[0]))]
    return torch.tensor(losses)
