"""Annealed importance sampling with Hamiltonian transitions, forward and in reverse."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pyro
import torch
from torch import Tensor

from guides import Guide
from guides.latents import Latents

from ..programs.bound import unwrap
from ..programs.draws import draw_chunks
from ..programs.isolation import isolated
from ..programs.validation import as_args, check_count, check_data, check_pair
from .estimate import Evidence, LogMean
from .hmc import transition
from .iwae import ROWS, per_row

__all__ = ["ais", "ais_reverse"]

ACCEPTANCE = 0.75
"""The rate at which proposals are accepted that the step sizes are tuned for; near the optimum of HMC."""


def ais(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    x: Tensor | tuple[Any, ...],
    *,
    temperatures: int = 200,
    chains: int = 16,
    leapfrog: int = 5,
    pilot: int = 8,
    seed: int = 0,
) -> Evidence:
    r"""A lower bound on log p(x) by annealing from q to the posterior: log of the mean of unbiased weights for p(x).

    The path is q(h)^{1−β} p(x, h)^β with β from 0 to 1 along a sigmoid. Each of `temperatures` steps adds
    Δβ (log p(x, h) − log q(h)) to a chain's log weight, then moves the chain by one Hamiltonian transition that leaves the
    path's density invariant. Step sizes, one for each datum and temperature, are tuned by a run of `pilot` chains and then
    fixed, so that the weights stay unbiased. Chains and data are batched, in the packed unconstrained space.

    Args:
        model: any Pyro program with continuous latents.
        guide: what to start from: a guide of this suite, or `guides.Prior(model)`.
        x: the data, or a tuple of the model's arguments.
        temperatures: steps of the path, at least 2.
        chains: independent weights for each datum; the standard error needs at least 2.
        leapfrog: steps of each transition, one gradient each.
        pilot: chains of the tuning run.
        seed: fixes all draws.

    Returns:
        Per datum where every latent lies inside the data plate, else one value for all data.

    Raises:
        TypeError, ValueError: for bad input.

    Reference: Neal, "Annealed importance sampling" (2001); Wu, Burda, Salakhutdinov & Grosse, "On the quantitative analysis of
    decoder-based generative models" (2017).
    """
    _check(temperatures=temperatures, chains=chains, leapfrog=leapfrog, pilot=pilot)
    args = as_args(x)
    check_data(model, args)
    found = []
    with isolated(seed), pyro.validation_enabled(False):
        check_pair(model, guide, args, {})
        for path in _paths(model, guide, args):
            sizes = _tune(path, temperatures, pilot, leapfrog)
            weights = _anneal(path, path.start(chains), sizes, leapfrog)
            found.append(_mean(weights, upper=False))
    return _joined(found)


def ais_reverse(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    x: Tensor | tuple[Any, ...],
    h: dict[str, Tensor],
    *,
    temperatures: int = 200,
    chains: int = 16,
    leapfrog: int = 5,
    pilot: int = 8,
    seed: int = 0,
) -> Evidence:
    """An upper bound on log p(x) by annealing from the posterior back to q: −log of the mean of unbiased weights for 1/p(x).

    It needs one exact draw from the posterior for each datum, which simulated data come with: the h that made x. All chains
    start from it, so that the weights are unbiased but not independent of it.

    Args:
        h: each latent of the model, without a dimension of draws: shape (N, …) inside the data plate.

    Other arguments, returns and errors: as for `ais`.

    Reference: Grosse, Ghahramani & Adams, "Sandwiching the marginal likelihood using bidirectional Monte Carlo" (2015).
    """
    _check(temperatures=temperatures, chains=chains, leapfrog=leapfrog, pilot=pilot)
    args = as_args(x)
    check_data(model, args)
    found = []
    with isolated(seed), pyro.validation_enabled(False):
        check_pair(model, guide, args, {})
        for path in _paths(model, guide, args):
            sizes = _tune(path, temperatures, pilot, leapfrog)
            exact = {name: value[path.rows] if path.rows is not None else value for name, value in h.items()}
            start = path.latents.pack({name: value.unsqueeze(0) for name, value in exact.items()})
            weights = _anneal(path, start.expand(chains, *start.shape[1:]).contiguous(), sizes, leapfrog, reverse=True)
            found.append(_mean(weights, upper=True))
    return _joined(found)


class _Path(NamedTuple):
    """The two ends for one block of data: draws from q, and the log densities of both."""

    latents: Latents
    rows: Tensor | None
    start: Callable[[int], Tensor]
    """K draws of q, shape (K, N, dim), or (K, dim) for global latents."""
    ends: Callable[[Tensor], tuple[Tensor, Tensor]]
    """log q(h) and log p(x, h), each of shape (K, N) or (K,)."""


class _State(NamedTuple):
    h: Tensor
    log_q: Tensor
    log_p: Tensor
    slope_q: Tensor
    slope_p: Tensor


def _paths(model: Callable[..., Any], guide: Callable[..., Any], args: tuple[Any, ...]) -> Iterator[_Path]:
    guide = unwrap(guide)
    latents = guide.latents if isinstance(guide, Guide) else _latents(model, args)
    assert latents is not None
    if latents.discrete:
        raise ValueError("ais moves along gradients, and the latent is discrete: use iwae, or sum its states.")
    cut = latents.plate is not None and per_row(args)
    blocks = torch.arange(len(args[0]), device=args[0].device).split(ROWS) if cut else [None]
    for rows in blocks:
        block = args if rows is None else tuple(value[rows] for value in args)
        yield _path(model, guide, latents, block, rows)


def _path(model: Any, guide: Any, latents: Latents, block: tuple[Any, ...], rows: Tensor | None) -> _Path:
    if isinstance(guide, Guide):
        with torch.no_grad():
            q = guide.family(guide.lambdas(block[0], rows))

        def start(count: int) -> Tensor:
            return q.sample((count,))

        def ends(h: Tensor) -> tuple[Tensor, Tensor]:
            return q.log_prob(h), latents.log_joint(model, h, block)

    else:

        def start(count: int) -> Tensor:
            chunks = [chunk.h for chunk in draw_chunks(model, guide, block, draws=count)]
            return latents.pack({name: torch.cat([chunk[name] for chunk in chunks]) for name in chunks[0]})

        def ends(h: Tensor) -> tuple[Tensor, Tensor]:
            prior, likelihood = latents.log_factors(model, h, block)
            return prior, prior + likelihood

    return _Path(latents, rows, start, ends)


def _latents(model: Callable[..., Any], args: tuple[Any, ...]) -> Latents:
    """Packed per datum if every latent lies inside the data plate, else all together."""
    try:
        return Latents(model, args, {}, plate="data")
    except ValueError:
        return Latents(model, args, {}, plate=None)


def _betas(temperatures: int) -> list[float]:
    """From 0 to 1 along a sigmoid, finest at both ends (Grosse, Ghahramani & Adams 2015, section 6)."""
    sigmoid = torch.linspace(-4.0, 4.0, temperatures + 1, dtype=torch.float64).sigmoid()
    betas: list[float] = ((sigmoid - sigmoid[0]) / (sigmoid[-1] - sigmoid[0])).tolist()
    return betas


def _tune(path: _Path, temperatures: int, pilot: int, leapfrog: int) -> list[Tensor]:
    """Step sizes for each temperature, each of shape (N,) or (): those that a pilot run is accepted with often enough."""
    betas = _betas(temperatures)
    state = _evaluate(path, path.start(pilot))
    size = torch.full_like(state.log_q[0], 0.1)
    for _ in range(30):
        state, accepted = _transition(path, state, betas[1], size, leapfrog)
        size = size * (accepted.mean(0) - ACCEPTANCE).exp()
    sizes = []
    for beta in betas[1:]:
        state, accepted = _transition(path, state, beta, size, leapfrog)
        size = size * (0.3 * (accepted.mean(0) - ACCEPTANCE)).exp()
        sizes.append(size)
    return sizes


def _anneal(path: _Path, h: Tensor, sizes: list[Tensor], leapfrog: int, *, reverse: bool = False) -> Tensor:
    """Log weights, shape (K, N) or (K,): of p(x) forward, of 1/p(x) in reverse."""
    betas = _betas(len(sizes))
    state = _evaluate(path, h)
    weights = torch.zeros_like(state.log_q, dtype=torch.float64)
    order = range(1, len(betas))
    for t in reversed(order) if reverse else order:
        change = (betas[t] - betas[t - 1]) * (state.log_p - state.log_q).double()
        weights = weights - change if reverse else weights + change
        target = t - 1 if reverse else t
        if 0 < target < len(betas) - 1:
            state, _ = _transition(path, state, betas[target], sizes[target - 1], leapfrog)
    return weights


def _evaluate(path: _Path, h: Tensor) -> _State:
    h = h.detach().requires_grad_()
    log_q, log_p = path.ends(h)
    (slope_q,) = torch.autograd.grad(log_q.sum(), h, retain_graph=True)
    (slope_p,) = torch.autograd.grad(log_p.sum(), h)
    return _State(h.detach(), log_q.detach(), log_p.detach(), slope_q, slope_p)


def _transition(path: _Path, state: _State, beta: float, size: Tensor, leapfrog: int) -> tuple[_State, Tensor]:
    """One Hamiltonian transition for every chain, and the probability with which each was accepted."""
    return transition(
        state,
        evaluate=lambda h: _evaluate(path, h),
        density=lambda at: (1.0 - beta) * at.log_q + beta * at.log_p,
        slope=lambda at: (1.0 - beta) * at.slope_q + beta * at.slope_p,
        size=size,
        leapfrog=leapfrog,
    )


def _mean(weights: Tensor, *, upper: bool) -> Evidence:
    mean = LogMean(len(weights))
    mean.add(weights)
    return mean.result(upper=upper)


def _joined(found: list[Evidence]) -> Evidence:
    if len(found) == 1:
        return found[0]
    value, se, ess, khat = (torch.cat([getattr(part, name) for part in found]) for name in ("value", "se", "ess", "khat"))
    return Evidence(value, se, ess, found[0].draws, found[0].bound, khat)


def _check(*, temperatures: int, chains: int, leapfrog: int, pilot: int) -> None:
    check_count(chains=chains, leapfrog=leapfrog, pilot=pilot)
    check_count(temperatures=temperatures)
    if temperatures < 2:
        raise ValueError(
            f"temperatures must be at least 2, but is {temperatures}: with one, nothing is annealed, and iwae does the same."
        )
