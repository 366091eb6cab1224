"""NUTS over the unconstrained log joint of any Pyro model: by NumPyro or nutpie where they are installed, or by Pyro."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from typing import Any, NamedTuple, Protocol

import numpy as np
import pyro
import torch
from pyro.infer import MCMC, NUTS
from torch import Tensor

from ..programs.log_joint import LogJoint

__all__ = ["Chains", "Length", "Sampler", "best_sampler", "numpyro_nuts", "nutpie_nuts", "packages", "pyro_nuts"]

DENSE = 50
"""Dimensions up to which the whole mass matrix is adapted, beyond which its diagonal alone."""


class Chains(NamedTuple):
    """What a sampler has drawn."""

    u: Tensor
    """Shape (chains, draws, dim), float64."""
    divergences: int


class Length(NamedTuple):
    """How long to run, and how."""

    chains: int
    draws: int
    warmup: int
    target_accept: float
    seed: int
    progress: bool


class Sampler(Protocol):
    """Draws from the density that a LogJoint is. Called inside `isolated`."""

    def __call__(self, joint: LogJoint, length: Length, /) -> Chains: ...


def best_sampler() -> Sampler:
    """NumPyro's NUTS, all chains at once, where it is installed; else nutpie's or Pyro's, one chain after the other."""
    if find_spec("numpyro") is not None:
        return numpyro_nuts
    return nutpie_nuts if find_spec("nutpie") is not None else pyro_nuts


def packages(sampler: Sampler) -> tuple[str, ...]:
    """The packages whose versions a sampler's draws depend on, besides torch and Pyro."""
    known: dict[Sampler, tuple[str, ...]] = {numpyro_nuts: ("numpyro", "jax"), nutpie_nuts: ("nutpie",)}
    return known.get(sampler, ())


def pyro_nuts(joint: LogJoint, length: Length) -> Chains:
    """Pyro's NUTS, chain after chain."""
    runs = []
    divergences = 0

    def potential(parameters: dict[str, Tensor]) -> Tensor:
        return -joint.at(parameters["u"])

    for chain in range(length.chains):
        pyro.set_rng_seed(length.seed + chain)
        start = _start(joint, 1)[0]
        kernel = NUTS(potential_fn=potential, target_accept_prob=length.target_accept, full_mass=joint.dim <= DENSE)
        mcmc = MCMC(kernel, length.draws, length.warmup, initial_params={"u": start}, disable_progbar=not length.progress)
        with warnings.catch_warnings(), pyro.validation_enabled(False):
            warnings.simplefilter("ignore")
            mcmc.run()
        runs.append(mcmc.get_samples()["u"].double())
        divergences += sum(len(at) for at in mcmc.diagnostics()["divergences"].values())
    return Chains(torch.stack(runs), divergences)


def numpyro_nuts(joint: LogJoint, length: Length) -> Chains:
    """NumPyro's NUTS with all chains in step, so that one vectorised call gives the density and score of all of them.

    JAX does the sampling and calls back to the model, which stays a Pyro program: the density is `LogJoint`'s own, and no
    second version of the model has to agree with it.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        jax, infer = import_module("jax"), import_module("numpyro.infer")
        with double_precision(jax), joint.evaluated():
            kernel = infer.NUTS(
                potential_fn=_potential(jax, joint),
                target_accept_prob=length.target_accept,
                dense_mass=joint.dim <= DENSE,
            )
            mcmc = infer.MCMC(
                kernel,
                num_warmup=length.warmup,
                num_samples=length.draws,
                num_chains=length.chains,
                chain_method="vectorized",
                progress_bar=length.progress,
            )
            pyro.set_rng_seed(length.seed)
            start = jax.numpy.asarray(_start(joint, length.chains).double().numpy())
            mcmc.run(jax.random.PRNGKey(length.seed), init_params=start, extra_fields=("diverging",))
            draws = np.array(mcmc.get_samples(group_by_chain=True))
            divergences = int(mcmc.get_extra_fields()["diverging"].sum())
    return Chains(torch.from_numpy(draws), divergences)


def nutpie_nuts(joint: LogJoint, length: Length) -> Chains:
    """nutpie's NUTS, chain after chain: its mass matrix learns from gradients too, and needs less warmup.

    Its core calls back to the model for density and score, in a thread of its own; one at a time, since Pyro has one stack
    of handlers for all threads.

    Reference: Seyboldt, Carlson & Carpenter, "Preconditioning Hamiltonian Monte Carlo by minimizing Fisher divergence" (2026).
    """
    nutpie, pyfunc = import_module("nutpie"), import_module("nutpie.compiled_pyfunc")
    both = torch.func.grad_and_value(joint.at)
    starts = iter(_start(joint, length.chains).double().numpy())

    def density(u: np.ndarray) -> tuple[float, np.ndarray]:
        score, value = both(torch.from_numpy(u.copy()).to(joint.latents.dtype))
        return float(value), score.double().numpy()

    compiled = pyfunc.from_pyfunc(
        joint.dim,
        lambda: density,
        lambda *_: lambda u: {"u": u},
        [np.dtype("float64")],
        [(joint.dim,)],
        ["u"],
        make_initial_point_fn=lambda _: next(starts),
    )
    with joint.evaluated():
        found = nutpie.sample(
            compiled,
            draws=length.draws,
            tune=length.warmup,
            chains=length.chains,
            cores=1,
            seed=length.seed,
            target_accept=length.target_accept,
            low_rank_modified_mass_matrix=joint.dim <= DENSE,
            save_warmup=False,
            progress_bar=length.progress,
        )
    draws = np.array(found.posterior["u"].values, dtype=np.float64)
    return Chains(torch.from_numpy(draws), int(found.sample_stats["diverging"].values.sum()))


@contextmanager
def double_precision(jax: Any) -> Iterator[None]:
    """JAX's float64, for every thread: callbacks run in one that `jax.enable_x64` does not reach. As it was, afterwards."""
    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", True)
    try:
        yield
    finally:
        jax.config.update("jax_enable_x64", before)


def _start(joint: LogJoint, chains: int) -> Tensor:
    return torch.empty(chains, joint.dim, dtype=joint.latents.dtype).uniform_(-1.0, 1.0)


def _potential(jax: Any, joint: LogJoint) -> Callable[[Any], Any]:
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
