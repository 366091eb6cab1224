"""The cases by NumPyro's `svi.run`."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from numpyro.infer import SVI, Trace_ELBO
from numpyro.infer.autoguide import AutoMultivariateNormal, AutoNormal

from .data import BATCH, RATE, data

__all__ = ["by_numpyro"]


def local(x: Any) -> None:
    with numpyro.plate("data", len(x)):
        h = numpyro.sample("h", dist.Normal(0.0, 1.0))
        numpyro.sample("x", dist.Normal(h, 1.0), obs=x)


def local_guide(x: Any) -> None:
    loc = numpyro.param("loc", jnp.zeros(len(x)))
    scale = numpyro.param("scale", jnp.ones(len(x)), constraint=dist.constraints.positive)
    with numpyro.plate("data", len(x)):
        numpyro.sample("h", dist.Normal(loc, scale))


def schools(y: Any, sigma: Any) -> None:
    mu = numpyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = numpyro.sample("tau", dist.HalfCauchy(5.0))
    with numpyro.plate("schools", len(y)):
        effect = numpyro.sample("effect", dist.Normal(0.0, 1.0))
        numpyro.sample("y", dist.Normal(mu + tau * effect, sigma), obs=y)


def logistic(inputs: Any, y: Any) -> None:
    w = numpyro.sample("w", dist.Normal(0.0, 1.0).expand([inputs.shape[1]]).to_event(1))
    with numpyro.plate("data", len(y)):
        numpyro.sample("y", dist.Bernoulli(logits=inputs @ w), obs=y)


def vae(hidden: tuple[int, ...], size: int, total: int) -> tuple[Any, Any]:
    """Encoder and decoder are tanh nets with their weights as parameters; both are called with a batch of the `total` data."""

    def net(name: str, x: Any, widths: tuple[int, ...]) -> Any:
        for k, width in enumerate(widths):
            key = jax.random.fold_in(jax.random.PRNGKey(len(name)), k)
            weights = numpyro.param(f"{name}_w{k}", jax.random.normal(key, (x.shape[-1], width)) / x.shape[-1] ** 0.5)
            x = x @ weights + numpyro.param(f"{name}_b{k}", jnp.zeros(width))
            x = jnp.tanh(x) if k < len(widths) - 1 else x
        return x

    def model(x: Any) -> None:
        with numpyro.plate("data", len(x)), numpyro.handlers.scale(scale=total / len(x)):
            h = numpyro.sample("h", dist.Normal(0.0, 1.0).expand([size]).to_event(1))
            logits = net("decoder", h, (*hidden[::-1], x.shape[-1]))
            numpyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x)

    def guide(x: Any) -> None:
        with numpyro.plate("data", len(x)), numpyro.handlers.scale(scale=total / len(x)):
            loc, raw = jnp.split(net("encoder", x, (*hidden, 2 * size)), 2, -1)
            numpyro.sample("h", dist.Normal(loc, jnp.exp(raw)).to_event(1))

    return model, guide


def pair(case: str) -> tuple[Any, Any]:
    """Model and guide of a case."""
    if case in ("d", "e", "f"):
        return vae((200, 200), 50, 12_800) if case == "f" else vae((200,), 8, 1797)
    return {
        "a": (local, local_guide),
        "b1": (schools, AutoNormal(schools)),
        "b2": (schools, AutoMultivariateNormal(schools)),
        "c": (logistic, AutoMultivariateNormal(logistic)),
    }[case]


def by_numpyro(case: str, steps: int) -> Any:
    """The losses of NumPyro's own loop: `svi.run`, or for minibatches one epoch at a time, as in its VAE example."""
    model, guide = pair(case)
    svi = SVI(model, guide, numpyro.optim.Adam(RATE), Trace_ELBO())
    args = tuple(map(jnp.asarray, data(case)))
    if case not in BATCH:
        result = svi.run(jax.random.PRNGKey(0), steps, *args, progress_bar=False)
        return jax.block_until_ready(result.losses)
    return jax.block_until_ready(_epochs(svi, args[0], BATCH[case], steps))


def _epochs(svi: SVI, x: Any, size: int, steps: int) -> Any:
    per_epoch = len(x) // size

    @jax.jit
    def epoch(state: Any, key: Any) -> Any:
        rows = jax.random.permutation(key, len(x))[: per_epoch * size].reshape(per_epoch, size)
        return jax.lax.scan(lambda state, index: svi.update(state, x[index]), state, rows)

    state, losses = svi.init(jax.random.PRNGKey(0), x[:size]), []
    for k in range(-(-steps // per_epoch)):
        state, found = epoch(state, jax.random.fold_in(jax.random.PRNGKey(1), k))
        losses.append(found)
    return jnp.concatenate(losses)[:steps]
