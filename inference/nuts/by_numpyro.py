"""NumPyro's NUTS."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from ..programs.arguments import checked
from ..programs.isolation import seed_all
from ..programs.log_joint import LogJoint
from .base import MAX_DENSE_DIM, Chains, Length, package, start

__all__ = ["double_precision", "numpyro_nuts", "vectorised_potential"]


@checked
def numpyro_nuts(joint: LogJoint, length: Length) -> Chains:
    """NumPyro's NUTS with all chains in step, so one vectorised call evaluates density and score of all chains.

    JAX runs the sampler and calls back to the Pyro model for the density. So the sampled density is `LogJoint`'s own, and no
    second version of the model has to agree with it.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        jax, infer = package("jax"), package("numpyro.infer")
        with double_precision(jax), joint.evaluated():
            kernel = infer.NUTS(
                potential_fn=vectorised_potential(jax, joint),
                target_accept_prob=length.target_accept,
                dense_mass=joint.dim <= MAX_DENSE_DIM,
            )
            mcmc = infer.MCMC(
                kernel,
                num_warmup=length.warmup,
                num_samples=length.draws,
                num_chains=length.chains,
                chain_method="vectorized",
                progress_bar=length.progress,
            )
            seed_all(length.seed)
            first = jax.numpy.asarray(start(joint, length.chains).double().numpy())
            mcmc.run(jax.random.PRNGKey(length.seed % 2**63), init_params=first, extra_fields=("diverging",))
            draws = np.array(mcmc.get_samples(group_by_chain=True))
            divergences = int(mcmc.get_extra_fields()["diverging"].sum())
    return Chains(torch.from_numpy(draws), divergences)


@contextmanager
def double_precision(jax: Any) -> Iterator[None]:
    """Enables JAX's float64 in every thread, and restores the setting afterwards.

    `jax.enable_x64` is not enough: it does not reach the thread of the callbacks.
    """
    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", True)
    try:
        yield
    finally:
        jax.config.update("jax_enable_x64", before)


def vectorised_potential(jax: Any, joint: LogJoint) -> Callable[[Any], Any]:
    """−log p(x, u) as a JAX function with a gradient, vectorised over chains."""
    both = torch.func.vmap(torch.func.grad_and_value(lambda u: -joint.at(u)))

    def evaluated(u: Any) -> tuple[np.ndarray, np.ndarray]:
        u = np.asarray(u)
        flat = torch.from_numpy(u.reshape(-1, u.shape[-1]).copy()).to(joint.latents.dtype)
        score, value = both(flat)
        values = value.detach().double().nan_to_num(nan=torch.inf).numpy().reshape(u.shape[:-1])
        return values, score.detach().double().nan_to_num(0.0, 0.0, 0.0).numpy().reshape(u.shape)

    def call(u: Any) -> Any:
        shapes = jax.ShapeDtypeStruct(u.shape[:-1], u.dtype), jax.ShapeDtypeStruct(u.shape, u.dtype)
        return jax.pure_callback(evaluated, shapes, u, vmap_method="broadcast_all")

    def backward(score: Any, gradient: Any) -> tuple[Any]:
        return (gradient * score,)

    potential = jax.custom_vjp(lambda u: call(u)[0])
    potential.defvjp(call, backward)
    return potential
