"""Tests of weighted draws against errors that importance weights cannot detect: moves along the posterior, other draws."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from scipy.stats import norm
from torch import Tensor

from ..evidence.hmc import transition
from ..programs.arguments import checked
from ..programs.isolation import isolated
from ..programs.log_joint import LogJoint
from ..programs.quantities import quantities, scalars
from ..programs.validation import check_count
from .importance import Importance
from .whitened import Whitened

__all__ = ["Change", "change", "drift", "moved"]

MIN_CHAINS = 100

TARGET_ACCEPTANCE = 0.8
"""Acceptance rate for which the step size is tuned."""
MIN_MOVES_TO_WHITEN_AGAIN = 10
SIGNIFICANCE = 1e-3
"""Probability that draws from the posterior itself show a significant change in at least one scalar."""


@dataclass(frozen=True)
class Change:
    """Differences of the moments of D scalars between two sets of draws; every field has shape (D,)."""

    mean: Tensor
    """Difference of the means, in posterior sds."""
    sd: Tensor
    """Logarithm of the ratio of the standard deviations."""
    mean_z: Tensor
    """`mean` in units of its standard error."""
    sd_z: Tensor
    """`sd` in units of its standard error."""

    def worst(self, field: str, limit: float) -> int | None:
        """Position of the largest significant change of ``"mean"`` or ``"sd"`` above `limit`; None if there is none."""
        size, z = getattr(self, field).abs(), getattr(self, f"{field}_z").abs()
        wrong = (size > limit) & (z > norm.isf(SIGNIFICANCE / (4 * len(z))))
        return int(size.where(wrong, -torch.ones_like(size)).argmax()) if bool(wrong.any()) else None


@checked
def change(first: Importance, second: Importance) -> Change:
    """Change from one proposal's corrected moments to another's: zero in expectation if both proposals cover the posterior."""
    one, other = first.corrected(), second.corrected()
    errors = [
        a.square().add(b.square()).sqrt() for a, b in zip(first.corrected_errors(), second.corrected_errors(), strict=True)
    ]
    mean, sd = other.mean - one.mean, (other.sd / one.sd).log()
    return Change(mean / other.sd, sd, mean / errors[0], sd / errors[1])


@checked
def drift(
    model: Callable[..., Any],
    x: Tensor | tuple[Any, ...],
    weighted: Importance,
    *,
    chains: int = 1000,
    moves: int = 20,
    leapfrog: int = 5,
    seed: int = 0,
) -> Change:
    """Resamples draws by their weights, moves them along the posterior, and measures the change of their moments.

    Importance weights see the posterior only where q draws. If q leaves out a part of it, k̂ can be small and the corrected
    moments wrong. Hamiltonian moves reach that part, and they leave the posterior invariant: starting from posterior draws no
    moment changes, however few or short the moves are. So a significant change proves that the weighted draws are wrong. The
    absence of a change proves nothing about parts that the moves cannot reach, such as other modes.

    If ρ is the correlation between a scalar before and after the moves, a linear process undoes 1 − ρ of a deviation of the
    mean and 1 − ρ² of a deviation of the variance. Changes are divided by these factors, which turns them into deviations.
    Standard errors are those of paired differences, clustered by the original draw.

    Args:
        model, x: the posterior.
        weighted: draws and their weights.
        chains: number of draws to move, at least 100.
        moves: transitions of each chain, in coordinates standardised by the draws' spread.
        leapfrog: steps of each transition.
        seed: fixes all draws.

    Returns:
        Estimated deviations of the weighted moments.

    Raises:
        TypeError, ValueError: for bad input.

    Reference: Gilks & Berzuini, "Following a moving target: Monte Carlo inference for dynamic Bayesian models" (2001); Neal,
    "MCMC using Hamiltonian dynamics" (2011).
    """
    check_count(least=MIN_CHAINS, chains=chains)
    check_count(moves=moves, leapfrog=leapfrog)
    joint = LogJoint(model, x)
    with isolated(seed):
        ancestors = _resampled(weighted.smoothed, chains)
        u = joint.unconstrain({name: _taken(value, ancestors) for name, value in weighted.h.items()})
    (end,) = moved(joint, u, moves=moves, leapfrog=leapfrog, kept=1, seed=seed + 1)
    origin = ancestors[:, list(weighted.scalars.datum) if ancestors.shape[1] > 1 else [0] * len(weighted.scalars.names)]
    before = weighted.scalars.draws.gather(0, origin)
    table = scalars(quantities(model, joint.constrain(end)))
    after = table.draws[:, [table.names.index(name) for name in weighted.scalars.names]]
    return _deviations(before, after, origin, len(weighted.log_weights))


def moved(joint: LogJoint, u: Tensor, *, moves: int, leapfrog: int, kept: int, seed: int) -> list[Tensor]:
    """Moves the points `u`, shape (K, dim), along the posterior; the states after each of the last `kept` moves.

    Moves are Hamiltonian, in coordinates whitened by the points; after half of many moves they are whitened anew.
    """
    states = []
    first = moves // 2 if moves >= MIN_MOVES_TO_WHITEN_AGAIN else 0
    space = Whitened(joint, u)
    with space.evaluated(seed):
        if first:
            u = space.points(_run(space, space.whiten(u), first, leapfrog)[-1])
    space = Whitened(joint, u) if first else space
    with space.evaluated(seed + 1):
        states = _run(space, space.whiten(u), moves - first, leapfrog)
    return [space.points(z) for z in states[-kept:]]


def _deviations(before: Tensor, after: Tensor, origin: Tensor, draws: int) -> Change:
    """Deviations of the moments from those of chains before and after the moves, shapes (K, D).

    `origin` has the position of each entry's original draw, of `draws` in all.
    """
    start, mean = before.mean(0), after.mean(0)
    spread, sd = before.std(0), after.std(0)
    kept = ((before - start) * (after - mean)).mean(0) / (spread * sd)
    kept = kept.nan_to_num(0.0).clamp(0.0, 0.9)
    shift, growth = (mean - start) / sd, (sd / spread).log()
    # Contribution of each chain to the two changes; for the sd by the delta method.
    first = (after - before) / sd
    second = 0.5 * (((after - mean) / sd) ** 2 - ((before - start) / spread) ** 2)
    errors = [_error(values, origin, draws) for values in (first, second)]
    return Change(shift / (1 - kept), growth / (1 - kept**2), shift / errors[0], growth / errors[1])


class _State(NamedTuple):
    z: Tensor
    log_p: Tensor
    slope: Tensor


def _run(space: Whitened, z: Tensor, moves: int, leapfrog: int) -> list[Tensor]:
    """The positions of the chains after each move. The step size is tuned by a pilot that is thrown away."""

    def evaluate(z: Tensor) -> _State:
        return _State(z, *space.log_density_and_slope(z))

    def move(state: _State, size: float) -> tuple[_State, Tensor]:
        # Step sizes vary between chains, so that some are small enough for narrow regions.
        sizes = size * (0.3 * torch.randn_like(state.log_p)).exp()
        return transition(
            state, evaluate=evaluate, density=lambda at: at.log_p, slope=lambda at: at.slope, size=sizes, leapfrog=leapfrog
        )

    state = evaluate(z)
    size, pilot = float(space.dim) ** -0.25, _State(*(value[: max(1, len(z) // 5)] for value in state))
    for _ in range(8):
        _, accepted = move(pilot, size)
        size *= float((accepted.mean() - TARGET_ACCEPTANCE).exp()) if float(accepted.mean()) > 0.3 else 0.5
    states = []
    for _ in range(moves):
        state, _ = move(state, size)
        states.append(state.z)
    return states


def _resampled(log_weights: Tensor, chains: int) -> Tensor:
    """Systematic resampling: positions of the chosen draws, shape (chains, 1), or (chains, N) if each datum has weights."""
    weights = log_weights.reshape(len(log_weights), -1).exp()
    total = (weights.cumsum(0) / weights.sum(0)).mT.contiguous()
    places = (torch.arange(chains) + torch.rand(len(total), 1)) / chains
    found = torch.searchsorted(total, places.to(total)).clamp(max=len(weights) - 1)
    # Draws of different data are independent; sorted positions would correlate them.
    return torch.stack([row[torch.randperm(chains)] for row in found], -1)


def _taken(draws: Tensor, positions: Tensor) -> Tensor:
    if positions.shape[1] == 1:
        return draws[positions[:, 0]]
    index = positions.reshape(*positions.shape, *(1,) * (draws.dim() - 2))
    return draws.gather(0, index.expand(-1, -1, *draws.shape[2:]))


def _error(values: Tensor, ancestors: Tensor, draws: int) -> Tensor:
    """Standard error of the mean of each column, clustered by ancestor."""
    sums = torch.zeros(draws, values.shape[1], dtype=values.dtype)
    sums.scatter_add_(0, ancestors, values - values.mean(0))
    return sums.square().sum(0).sqrt() / len(values)
