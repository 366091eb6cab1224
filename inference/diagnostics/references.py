"""Estimates of the posterior's moments and quantiles with which q is compared, each with its errors."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import inf, log
from typing import Any, NamedTuple

import torch
from scipy.stats import norm
from torch import Tensor

from ..evidence.psis import MAX_KHAT
from ..programs.isolation import isolated
from ..programs.log_joint import LogJoint
from ..programs.quantities import quantities, scalars
from ..programs.validation import as_args
from .drift import moved
from .importance import Importance

__all__ = ["TAIL", "Estimated", "Reference", "by_moves", "by_weights", "khat_error", "of_q"]

TAIL = 0.025
"""Probability beyond each quantile of the tails."""
MIN_ESS = 400
"""Effective draws with which a weighted estimate decides."""
MAX_KEPT = 0.35
"""Largest correlation of a scalar before and after the moves with which the chains count as independent of their start."""
MAX_TREND = 4.5
"""Standard errors between two successive states of all chains that count as a drift that has not ended."""
MAX_CHAINS, MIN_CHAINS = 600, 200
MOVES, LEAPFROG, KEPT = 18, 5, 8
"""Moves of each chain, steps of each move, and the number of last states that are kept."""
MAX_STATE_NUMBERS = 80_000
"""Chains times dimensions."""
MAX_DATA_NUMBERS = 20_000_000
"""Chains times numbers in the data."""


class Estimated(NamedTuple):
    """Four numbers for each of D scalars, each of shape (D,)."""

    mean: Tensor
    sd: Tensor
    low: Tensor
    """Quantile of the lower tail."""
    high: Tensor
    """Quantile of the upper tail."""


@dataclass(frozen=True)
class Reference:
    """An estimate of the posterior, and whether it can be believed."""

    by: str
    """How it was made, as the subject of a sentence."""
    estimate: Estimated
    error: Estimated
    """Standard errors, in posterior sds, and of the logarithm of the sd."""
    reliable: bool

    def off(self, other: Reference, fields: tuple[str, ...]) -> tuple[Tensor, Tensor]:
        """Largest error of another estimate in these fields, and the standard error of this error, for each scalar.

        In posterior sds, or as a share of the posterior sd.
        """
        truth, q = self.estimate, other.estimate
        errors, noise = [], []
        for name in fields:
            value, own = getattr(truth, name), getattr(q, name)
            errors.append((own / value - 1).abs() if name == "sd" else (own - value).abs() / truth.sd)
            noise.append((getattr(self.error, name) ** 2 + getattr(other.error, name) ** 2).sqrt())
        error, which = torch.stack(errors).nan_to_num(nan=inf).max(0)
        return error, torch.stack(noise).gather(0, which.unsqueeze(0))[0].nan_to_num(nan=inf)


def khat_error(weighted: Importance) -> float:
    """Standard error of k̂: (1 + k) / √M for the M = 3 √K weights of the tail."""
    if weighted.worst == -inf:
        return 0.0
    return (1 + max(weighted.worst, 0.0)) / (3 * len(weighted.log_weights) ** 0.5) ** 0.5


def of_q(weighted: Importance) -> Reference:
    """Moments and quantiles of q itself, from its draws without weights."""
    equal = torch.full_like(weighted.log_weights, -log(len(weighted.log_weights)))
    return by_weights("q", replace(weighted, smoothed=equal, log_weights_per_datum=None, khat_per_datum=None))


def by_weights(by: str, weighted: Importance) -> Reference:
    """From weighted draws: reliable if k̂ is below its limit by a standard error and enough draws are effective."""
    mean, sd = weighted.corrected()
    mean_se, sd_se = weighted.corrected_errors()
    weights, draws = weighted.weights(), weighted.scalars.draws
    low, high = (_quantile(draws, weights, p) for p in (TAIL, 1 - TAIL))
    errors = [_quantile_error(draws, weights, at, sd) for at in (low, high)]
    reliable = weighted.worst + khat_error(weighted) <= MAX_KHAT and weighted.ess >= MIN_ESS
    return Reference(by, Estimated(mean, sd, low, high), Estimated(mean_se / sd, sd_se, *errors), reliable)


def by_moves(joint: LogJoint, u: Tensor, table: Tensor, x: Any, *, seed: int) -> Reference:
    """From q's draws after Hamiltonian moves along the posterior: reliable if the chains forget their starts and settle.

    The moves do not use weights, so they serve where weights fail for their variance: in many dimensions. They do not cross
    between distant modes.

    Args:
        joint: the posterior.
        u: draws of q in unconstrained space, shape (K, dim).
        table: the scalars at these draws, shape (K, D).
        x: the data.
        seed: fixes the moves.
    """
    numbers = sum(value.numel() for value in as_args(x) if isinstance(value, Tensor))
    chains = min(MAX_CHAINS, MAX_STATE_NUMBERS // joint.dim, MAX_DATA_NUMBERS // max(1, numbers), len(u))
    with isolated(seed):
        chosen = torch.randperm(len(u))[: max(MIN_CHAINS, chains)]
    states = moved(joint, u[chosen], moves=MOVES, leapfrog=LEAPFROG, kept=KEPT, seed=seed)
    after = torch.stack([scalars(quantities(joint.model, joint.constrain(state))).draws for state in states])
    before = table[chosen]
    pooled = after.flatten(0, 1)
    mean, sd = pooled.mean(0), pooled.std(0)
    low, high = (torch.quantile(pooled, p, dim=0) for p in (TAIL, 1 - TAIL))
    root = len(chosen) ** 0.5
    spread = 0.5 * (((after - mean) / sd) ** 2).mean(0).std(0) / root
    tails = [((after <= at).double().mean(0).std(0) / root) * _spacing(pooled, at, sd) for at in (low, high)]
    error = Estimated(after.mean(0).std(0) / sd / root, spread, *tails)
    kept = ((before - before.mean(0)) * (after[-1] - after[-1].mean(0))).mean(0) / (before.std(0) * after[-1].std(0))
    half = KEPT // 2
    change = (after[half:].mean(0) - after[:half].mean(0)) / sd
    square = ((after[half:] - mean) ** 2 - (after[:half] - mean) ** 2).mean(0) / sd**2
    trend = torch.cat([v.mean(0) / (v.std(0) / root + 1e-12) for v in (change, square)]).abs().max()
    settled = float(kept.nan_to_num(1.0).max()) <= MAX_KEPT and float(trend.nan_to_num(inf)) <= MAX_TREND
    return Reference("moves along the posterior", Estimated(mean, sd, low, high), error, settled)


def _quantile(draws: Tensor, weights: Tensor, p: float) -> Tensor:
    """The weighted quantile of each column; weights of shape (K, 1) or (K, D)."""
    ordered, order = draws.sort(0)
    total = weights.expand_as(draws).gather(0, order).cumsum(0)
    place = (total < p * total[-1]).sum(0).clamp(max=len(draws) - 1)
    return ordered.gather(0, place.unsqueeze(0))[0]


def _quantile_error(draws: Tensor, weights: Tensor, at: Tensor, sd: Tensor) -> Tensor:
    below = (draws <= at).to(weights)
    share = (weights * below).sum(0)
    noise = (weights**2 * (below - share) ** 2).sum(0).sqrt()
    near = ((draws - at).abs() <= 0.25 * sd).to(weights)
    density = (weights * near).sum(0) / 0.5
    # Few effective draws also give a density, and a noise, that are too small by chance: half of a normal's is the least.
    least = 0.5 * (TAIL * (1 - TAIL) * weights.square().sum(0)).sqrt() / float(norm.pdf(norm.isf(TAIL)))
    return torch.maximum(noise / density.clamp(min=1e-3), least)


def _spacing(draws: Tensor, at: Tensor, sd: Tensor) -> Tensor:
    """Change of a quantile, in sds, for each unit of probability."""
    near = ((draws - at).abs() <= 0.25 * sd).double().mean(0) / 0.5
    return 1 / near.clamp(min=1e-3)
