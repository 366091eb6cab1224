"""Do weighted draws stay as they are under moves that leave the posterior as it is? What weights cannot see, moves can."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from scipy.stats import norm
from torch import Tensor
from torch.linalg import LinAlgError  # type: ignore[attr-defined]

from ..evidence.hmc import transition
from ..programs.isolation import isolated
from ..programs.log_joint import LogJoint
from ..programs.quantities import quantities, scalars
from ..programs.validation import check_count
from .importance import Importance

__all__ = ["Change", "change", "drift"]

ACCEPTANCE = 0.8
"""The rate at which moves are accepted that the step size is tuned for."""
TOGETHER = 50
"""Chains that are turned back together where one of them has a matrix that cannot be factorised."""
LEVEL = 1e-3
"""Probability with which draws from the posterior itself would show a significant change in any of the scalars."""


@dataclass(frozen=True)
class Change:
    """By how much the moments of D scalars differ between two sets of draws; every field of shape (D,)."""

    mean: Tensor
    """Difference of the means, in posterior sds."""
    sd: Tensor
    """Logarithm of the ratio of the standard deviations."""
    mean_z: Tensor
    """The difference of the means in units of its standard error."""
    sd_z: Tensor

    def worst(self, field: str, limit: float) -> int | None:
        """The scalar whose ``"mean"`` or ``"sd"`` differs the most, if by more than `limit` and significantly; else None."""
        size, z = getattr(self, field).abs(), getattr(self, f"{field}_z").abs()
        wrong = (size > limit) & (z > norm.isf(LEVEL / (4 * len(z))))
        return int(size.where(wrong, -torch.ones_like(size)).argmax()) if bool(wrong.any()) else None


def change(first: Importance, second: Importance) -> Change:
    """From the corrected moments of one proposal's draws to those of another's: zero if both know the posterior."""
    one, other = first.corrected(), second.corrected()
    errors = [
        a.square().add(b.square()).sqrt() for a, b in zip(first.corrected_errors(), second.corrected_errors(), strict=True)
    ]
    mean, sd = other.mean - one.mean, (other.sd / one.sd).log()
    return Change(mean / other.sd, sd, mean / errors[0], sd / errors[1])


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
    """Moves draws, resampled by their weights, along the posterior, and tells what that changes.

    Importance weights know the posterior only where q draws: where a part has no draws, k̂ may be small and the corrected
    moments wrong. Hamiltonian moves go there by themselves, and leave the posterior invariant: from draws that are its own
    no moment changes, whatever the moves do and however short they are. So a significant change proves the weighted draws
    wrong; that there is none proves nothing about parts that moves cannot reach, such as other modes.

    If ρ is the correlation between a scalar before and after the moves, a linear process undoes 1 − ρ of a deviation of the
    mean and 1 − ρ² of one of the variance; divided by these, changes are read as deviations. Standard errors are of paired
    differences, with draws that come from the same one taken together.

    Returns:
        By how much the weighted moments are off.

    Args:
        model, x: the posterior.
        weighted: draws and their weights.
        chains: how many draws are moved.
        moves: of each, by trajectories of `leapfrog` steps in coordinates standardised by the draws' spread.
        seed: fixes all draws.

    Reference: Gilks & Berzuini, "Following a moving target: Monte Carlo inference for dynamic Bayesian models" (2001); Neal,
    "MCMC using Hamiltonian dynamics" (2011).
    """
    check_count(least=100, chains=chains)
    check_count(moves=moves, leapfrog=leapfrog)
    joint = LogJoint(model, x)
    with isolated(seed):
        ancestors = _resampled(weighted.smoothed, chains)
        u = joint.unconstrain({name: _taken(value, ancestors) for name, value in weighted.h.items()})
        end = _moved(joint, u, moves, leapfrog)
    of = ancestors[:, list(weighted.scalars.datum) if ancestors.shape[1] > 1 else [0] * len(weighted.scalars.names)]
    before = weighted.scalars.draws.gather(0, of)
    after = scalars(quantities(model, joint.constrain(end))).draws
    start, mean = before.mean(0), after.mean(0)
    spread, sd = before.std(0), after.std(0)
    kept = ((before - start) * (after - mean)).mean(0) / (spread * sd)
    kept = kept.nan_to_num(0.0).clamp(0.0, 0.9)
    shift, growth = (mean - start) / sd, (sd / spread).log()
    # How much each chain adds to the two changes: for the second by the delta method.
    first = (after - before) / sd
    second = 0.5 * (((after - mean) / sd) ** 2 - ((before - start) / spread) ** 2)
    errors = [_error(values, of, len(weighted.log_weights)) for values in (first, second)]
    return Change(shift / (1 - kept), growth / (1 - kept**2), shift / errors[0], growth / errors[1])


class _State(NamedTuple):
    z: Tensor
    log_p: Tensor
    slope: Tensor


def _moved(joint: LogJoint, u: Tensor, moves: int, leapfrog: int) -> Tensor:
    """The chains after the moves, shape (K, dim)."""
    covariance = torch.atleast_2d(u.mT.cov())
    scale = covariance.diagonal().sqrt()
    root = scale.diag()
    if len(u) > 10 * joint.dim:
        correlation = covariance / scale / scale.unsqueeze(-1)
        root = scale.unsqueeze(-1) * torch.linalg.cholesky(correlation + 1e-6 * torch.eye(joint.dim, dtype=u.dtype))
    centre = u.mean(0)

    def evaluate(z: Tensor) -> _State:
        z = z.detach().requires_grad_()
        log_p = _density(joint, centre + z @ root.mT)
        (slope,) = torch.autograd.grad(log_p.sum(), z)
        return _State(z.detach(), log_p.detach(), slope.nan_to_num(0.0, 0.0, 0.0))

    def move(state: _State, size: float) -> tuple[_State, Tensor]:
        # Sizes differ between chains, so that narrow places are passed by some.
        sizes = size * (0.3 * torch.randn_like(state.log_p)).exp()
        return transition(
            state, evaluate=evaluate, density=lambda at: at.log_p, slope=lambda at: at.slope, size=sizes, leapfrog=leapfrog
        )

    start = evaluate(torch.linalg.solve_triangular(root, (u - centre).mT, upper=False).mT)
    size, pilot = float(joint.dim) ** -0.25, _State(*(value[: len(u) // 5] for value in start))
    for _ in range(8):
        _, accepted = move(pilot, size)
        size *= float((accepted.mean() - ACCEPTANCE).exp()) if float(accepted.mean()) > 0.3 else 0.5
    for _ in range(moves):
        start, _ = move(start, size)
    return centre + start.z @ root.mT


def _density(joint: LogJoint, u: Tensor) -> Tensor:
    """log p at each u; −inf for a chain, and a few others with it, at which a matrix of the model cannot be factorised."""
    try:
        return joint(u)
    except LinAlgError:
        if len(u) <= TOGETHER:
            return -torch.inf + 0.0 * u.sum(-1)
        return torch.cat([_density(joint, half) for half in u.chunk(2)])


def _resampled(log_weights: Tensor, count: int) -> Tensor:
    """Systematic resampling: positions of `count` draws, shape (count, 1), or (count, N) where each datum has weights."""
    weights = log_weights.reshape(len(log_weights), -1).exp()
    total = (weights.cumsum(0) / weights.sum(0)).mT.contiguous()
    places = (torch.arange(count) + torch.rand(len(total), 1)) / count
    found = torch.searchsorted(total, places.to(total)).clamp(max=len(weights) - 1)
    # The data's draws are independent of one another, and in order they would not be.
    return torch.stack([row[torch.randperm(count)] for row in found], -1)


def _taken(draws: Tensor, positions: Tensor) -> Tensor:
    if positions.shape[1] == 1:
        return draws[positions[:, 0]]
    index = positions.reshape(*positions.shape, *(1,) * (draws.dim() - 2))
    return draws.gather(0, index.expand(-1, -1, *draws.shape[2:]))


def _error(values: Tensor, ancestors: Tensor, draws: int) -> Tensor:
    """Standard error of the mean of each column, whose entries with the same ancestor are not independent."""
    sums = torch.zeros(draws, values.shape[1], dtype=values.dtype)
    sums.scatter_add_(0, ancestors, values - values.mean(0))
    return sums.square().sum(0).sqrt() / len(values)
