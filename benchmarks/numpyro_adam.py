"""The peer in time_to_optimum.py: NumPyro's SVI with Adam, one draw a step, with all steps compiled into one program."""

from __future__ import annotations

import time
from collections.abc import Callable
from math import inf
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax import lax, random
from numpyro.infer import SVI, Trace_ELBO
from numpyro.infer.autoguide import AutoMultivariateNormal, AutoNormal
from numpyro.optim import Adam

__all__ = ["RATES", "Path", "Peer", "decoder", "eight_schools", "factors", "gaussian_mean", "linear", "logistic"]

jax.config.update("jax_enable_x64", True)

RATES: dict[str, tuple[float, float]] = {
    "0.1": (0.1, inf),
    "0.03": (0.03, inf),
    "0.01": (0.01, inf),
    "0.003": (0.003, inf),
    "0.1, tenfold down in 1000": (0.1, 1000),
    "0.1, tenfold down in 10000": (0.1, 10000),
}
"""Adam's initial step size, and the number of steps in which it falls tenfold: four constant and two exponential schedules."""
STEPS_PER_LOOK = 20
"""Steps between two looks of the oracle, which stops a run at the optimum."""


class Path(NamedTuple):
    """The mean and scale of q at each look of the oracle."""

    steps: np.ndarray
    loc: np.ndarray
    """Shape (looks, dim)."""
    root: np.ndarray
    """Cholesky factor of the covariance, shape (looks, dim, dim), or, for a mean field, its diagonal, (looks, dim)."""
    seconds: float
    """Mean time of a step."""


class Peer:
    """A model and guide, compiled once for all rates and seeds.

    Args:
        model: a NumPyro model without arguments.
        full_rank: whether the guide is AutoMultivariateNormal; else it is AutoNormal. Both have their default settings.
        steps: number of steps of a run.
    """

    def __init__(self, model: Callable[[], None], *, full_rank: bool, steps: int) -> None:
        self.full_rank = full_rank
        self.steps = steps
        guide = (AutoMultivariateNormal if full_rank else AutoNormal)(model)

        def svi(first: Any, fall: Any) -> SVI:
            return SVI(model, guide, Adam(lambda step: first * 0.1 ** (step / fall)), Trace_ELBO(num_particles=1))

        def advance(state: Any, first: Any, fall: Any) -> Any:
            own = svi(first, fall)
            own.constrain_fn = base.constrain_fn

            def look(state: Any, _: Any) -> Any:
                state = lax.fori_loop(0, STEPS_PER_LOOK, lambda _, s: own.update(s)[0], state)
                return state, own.get_params(state)

            return lax.scan(look, state, None, length=steps // STEPS_PER_LOOK)[1]

        begin = time.perf_counter()
        base = svi(0.1, inf)
        self.init = base.init
        start = self.init(random.PRNGKey(0))
        self.advance = jax.jit(advance).lower(start, 0.1, inf).compile()
        self.compilation = time.perf_counter() - begin

    def run(self, first: float, fall: float, *, seed: int) -> Path:
        """Takes all steps from `seed`, with the step size `first` that falls tenfold in `fall` steps."""
        state = self.init(random.PRNGKey(seed))
        begin = time.perf_counter()
        found = jax.block_until_ready(self.advance(state, float(first), float(fall)))
        seconds = (time.perf_counter() - begin) / self.steps
        params = {name: np.asarray(value) for name, value in found.items()}
        loc, root = _moments(params, full_rank=self.full_rank)
        return Path(STEPS_PER_LOOK * np.arange(1, len(loc) + 1), loc, root, seconds)


def _moments(params: dict[str, np.ndarray], *, full_rank: bool) -> tuple[np.ndarray, np.ndarray]:
    """Mean and scale of the packed unconstrained latents, sites in alphabetical order; shapes as in `Path`."""
    if full_rank:
        return params["auto_loc"], params["auto_scale_tril"]
    sites = sorted(name.removesuffix("_auto_loc") for name in params if name.endswith("_auto_loc"))
    parts = [
        np.concatenate([params[f"{site}_auto_{part}"].reshape(len(params[f"{site}_auto_loc"]), -1) for site in sites], 1)
        for part in ("loc", "scale")
    ]
    return parts[0], parts[1]


def gaussian_mean(prior_loc: Any, prior_scale: Any, noise_scale: Any, x: Any, *, local: bool) -> Callable[[], None]:
    def model() -> None:
        if local:
            with numpyro.plate("data", len(x)):
                h = numpyro.sample("h", dist.Normal(prior_loc, prior_scale).to_event(1))
                numpyro.sample("x", dist.Normal(h, noise_scale).to_event(1), obs=x)
        else:
            h = numpyro.sample("h", dist.Normal(prior_loc, prior_scale).to_event(1))
            with numpyro.plate("data", len(x)):
                numpyro.sample("x", dist.Normal(h, noise_scale).to_event(1), obs=x)

    return model


def factors(loading: Any, mean: Any, noise_scale: Any, x: Any) -> Callable[[], None]:
    def model() -> None:
        with numpyro.plate("data", len(x)):
            h = numpyro.sample("h", dist.Normal(jnp.zeros(loading.shape[1]), 1.0).to_event(1))
            numpyro.sample("x", dist.Normal(h @ loading.T + mean, noise_scale).to_event(1), obs=x)

    return model


def decoder(inner: Any, bias: Any, outer: Any) -> Callable[[Any, Any], Callable[[], None]]:
    """A VAE whose decoder has one hidden layer and fixed weights; the result takes the offset of the output and x."""

    def bound(offset: Any, x: Any) -> Callable[[], None]:
        def model() -> None:
            with numpyro.plate("data", len(x)):
                h = numpyro.sample("h", dist.Normal(jnp.zeros(inner.shape[1]), 1.0).to_event(1))
                logits = jnp.tanh(h @ inner.T + bias) @ outer.T + offset
                numpyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x)

        return model

    return bound


def linear(covariates: Any, prior_scale: Any, noise_scale: Any, x: Any) -> Callable[[], None]:
    def model() -> None:
        h = numpyro.sample("h", dist.Normal(0.0, prior_scale).to_event(1))
        numpyro.sample("x", dist.Normal(covariates @ h, noise_scale).to_event(1), obs=x)

    return model


def logistic(covariates: Any, prior_scale: Any, x: Any) -> Callable[[], None]:
    def model() -> None:
        h = numpyro.sample("h", dist.Normal(0.0, prior_scale).to_event(1))
        numpyro.sample("x", dist.Bernoulli(logits=covariates @ h).to_event(1), obs=x)

    return model


def eight_schools(noise_scale: Any, x: Any, *, centered: bool) -> Callable[[], None]:
    def model() -> None:
        mu = numpyro.sample("mu", dist.Normal(0.0, 5.0))
        tau = numpyro.sample("tau", dist.HalfCauchy(5.0))
        with numpyro.plate("data", len(x)):
            if centered:
                theta = numpyro.sample("theta", dist.Normal(mu, tau))
            else:
                theta = mu + tau * numpyro.sample("theta", dist.Normal(0.0, 1.0))
            numpyro.sample("x", dist.Normal(theta, noise_scale), obs=x)

    return model
