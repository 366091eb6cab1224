"""Annealed importance sampling with Hamiltonian transitions, forward and in reverse."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import pyro
import torch
from torch import Tensor

from ..programs.arguments import checked
from ..programs.bound import unwrap
from ..programs.isolation import isolated
from ..programs.validation import as_args, check_count, check_data
from ..programs.whole_data import whole_data
from .annealing_path import AnnealingPath, annealing_paths
from .estimate import Evidence, LogMean
from .finite import require_finite
from .hmc import transition
from .whole_pair import whole_pair

__all__ = ["ais", "ais_reverse", "annealed"]

TARGET_ACCEPTANCE = 0.75
"""Acceptance rate for which the step sizes are tuned; near the optimum of HMC."""


@checked
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
    fixed, so the weights are unbiased. Chains and data are batched in packed unconstrained space.

    Args:
        model: any Pyro program with continuous latents.
        guide: the start of the path: a guide of this suite, or `guides.Prior(model)`.
        x: the data, or a tuple of the model's arguments.
        temperatures: steps of the path, at least 2.
        chains: independent weights for each datum; the standard error needs at least 2.
        leapfrog: steps of each transition, one gradient each.
        pilot: chains of the tuning run.
        seed: fixes all draws.

    Returns:
        One value per datum if every site of model and guide lies inside the data plate, else one value for all data.

    Raises:
        TypeError, ValueError: for bad input; also for any other guide, such as Pyro's autoguides, or a discrete latent.

    Reference: Neal, "Annealed importance sampling" (2001); Wu, Burda, Salakhutdinov & Grosse, "On the quantitative analysis of
    decoder-based generative models" (2017).
    """
    settings = _Settings(temperatures, chains, leapfrog, pilot)
    return _bound(model, guide, x, lambda path: path.start(chains), settings, reverse=False, seed=seed)


@checked
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

    It needs one exact posterior draw for each datum. Simulated data provide it: the h that generated x. All chains of a datum
    start from this draw, so the weights are unbiased but not independent of it.

    Args:
        h: each latent of the model, without a dimension of draws: shape (N, …) inside the data plate.

    Other arguments, returns and errors: as for `ais`.

    Reference: Grosse, Ghahramani & Adams, "Sandwiching the marginal likelihood using bidirectional Monte Carlo" (2015).
    """

    for name, value in h.items():
        require_finite(value, f"ais_reverse: the given draw of {name!r}", cause="every latent needs a number")

    def start(path: AnnealingPath) -> Tensor:
        exact = {name: value if path.rows is None else value[path.rows] for name, value in h.items()}
        packed = path.latents.pack({name: value.unsqueeze(0) for name, value in exact.items()})
        return packed.expand(chains, *packed.shape[1:]).contiguous()

    settings = _Settings(temperatures, chains, leapfrog, pilot)
    return _bound(model, guide, x, start, settings, reverse=True, seed=seed)


class _Settings(NamedTuple):
    temperatures: int
    chains: int
    leapfrog: int
    pilot: int

    def check(self) -> None:
        check_count(chains=self.chains, leapfrog=self.leapfrog, pilot=self.pilot)
        check_count(temperatures=self.temperatures)
        if self.temperatures < 2:
            raise ValueError(
                f"temperatures must be at least 2, but is {self.temperatures}: with one, nothing is annealed, and "
                "iwae does the same."
            )


class _State(NamedTuple):
    h: Tensor
    log_q: Tensor
    log_p: Tensor
    slope_q: Tensor
    slope_p: Tensor


def _bound(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    x: Tensor | tuple[Any, ...],
    start: Callable[[AnnealingPath], Tensor],
    settings: _Settings,
    *,
    reverse: bool,
    seed: int,
) -> Evidence:
    """The bound from chains that begin at `start`: the lower one, or in reverse the upper one."""
    settings.check()
    args = as_args(x)
    check_data(model, args)
    with whole_pair(model, guide, args, seed=seed), pyro.validation_enabled(False):
        return _over(annealing_paths(model, unwrap(guide), args), start, settings, reverse=reverse)


def annealed(paths: Iterable[AnnealingPath], *, temperatures: int, seed: int) -> Evidence:
    """`ais` along given paths, one for each block of data, with its other options at their defaults."""
    settings = _Settings(temperatures, chains=16, leapfrog=5, pilot=8)
    settings.check()
    with isolated(seed), whole_data(), pyro.validation_enabled(False):
        return _over(paths, lambda path: path.start(settings.chains), settings, reverse=False)


def _over(
    paths: Iterable[AnnealingPath], start: Callable[[AnnealingPath], Tensor], settings: _Settings, *, reverse: bool
) -> Evidence:
    blocks = []
    for path in paths:
        sizes = _tune(path, settings)
        mean = LogMean(settings.chains)
        mean.add(_anneal(path, start(path), sizes, settings.leapfrog, reverse=reverse))
        blocks.append(mean.result(upper=reverse))
    return Evidence.joined(blocks).checked("ais_reverse" if reverse else "ais")


def _betas(temperatures: int) -> list[float]:
    """From 0 to 1 along a sigmoid, finest at both ends (Grosse, Ghahramani & Adams 2015, section 6)."""
    sigmoid = torch.linspace(-4.0, 4.0, temperatures + 1, dtype=torch.float64).sigmoid()
    betas: list[float] = ((sigmoid - sigmoid[0]) / (sigmoid[-1] - sigmoid[0])).tolist()
    return betas


def _tune(path: AnnealingPath, settings: _Settings) -> list[Tensor]:
    """Step sizes for each temperature, each of shape (N,) or (), tuned to the target acceptance by a pilot run."""
    betas = _betas(settings.temperatures)
    state = _evaluate(path, path.start(settings.pilot))
    size = torch.full_like(state.log_q[0], 0.1)
    for _ in range(30):
        state, accepted = _transition(path, state, betas[1], size, settings.leapfrog)
        size = size * (accepted.mean(0) - TARGET_ACCEPTANCE).exp()
    sizes = []
    for beta in betas[1:]:
        state, accepted = _transition(path, state, beta, size, settings.leapfrog)
        size = size * (0.3 * (accepted.mean(0) - TARGET_ACCEPTANCE)).exp()
        sizes.append(size)
    return sizes


def _anneal(path: AnnealingPath, h: Tensor, sizes: list[Tensor], leapfrog: int, *, reverse: bool) -> Tensor:
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


def _evaluate(path: AnnealingPath, h: Tensor) -> _State:
    h = h.detach().requires_grad_()
    log_q, log_p = path.ends(h)
    (slope_q,) = torch.autograd.grad(log_q.sum(), h, retain_graph=True)
    (slope_p,) = torch.autograd.grad(log_p.sum(), h)
    return _State(h.detach(), log_q.detach(), log_p.detach(), slope_q, slope_p)


def _transition(path: AnnealingPath, state: _State, beta: float, size: Tensor, leapfrog: int) -> tuple[_State, Tensor]:
    """One Hamiltonian transition of every chain, and each chain's acceptance probability."""
    return transition(
        state,
        evaluate=lambda h: _evaluate(path, h),
        density=lambda at: (1.0 - beta) * at.log_q + beta * at.log_p,
        slope=lambda at: (1.0 - beta) * at.slope_q + beta * at.slope_p,
        size=size,
        leapfrog=leapfrog,
    )
