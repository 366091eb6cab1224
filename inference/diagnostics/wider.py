"""Importance draws from a proposal that is wider than q, fitted to the posterior in rounds."""

from __future__ import annotations

from math import lgamma, log, pi

import torch
from torch import Tensor

from guides import Prior

from ..evidence.psis import psis
from ..programs.draws import draw_all
from ..programs.isolation import isolated
from ..programs.log_joint import LogJoint
from ..programs.quantities import quantities, scalars
from .importance import Importance
from .whitened import Whitened

__all__ = ["wider_draws"]

MIN_DF = 5.0
"""Degrees of freedom of the proposals up to five dimensions, and their dimension above: heavy tails cost draws there."""
ROUNDS = 4
"""Rounds of 2000 draws in which the proposal is fitted."""
ROUND_DRAWS = 2000
MIN_ESS_PER_DIM = 5
"""Effective draws for each dimension with which a round's covariance is believed; with fewer, weights are tempered."""
PRIOR_DRAWS = 500
SPREADS = ((1.0, 0.6), (2.0, 0.25), (5.0, 0.15))
"""Scales of the parts of the proposal in units of q's, or of the fitted covariance, and their shares."""


def wider_draws(joint: LogJoint, u: Tensor, *, proper: bool, draws: int = 5000, seed: int = 0) -> Importance:
    """Weighted draws from a mixture of Student distributions around the posterior, wide ones too, and of a proper prior.

    q's own draws only tell where to begin. Each round fits the next proposal to the weighted draws of the last one. The wide
    parts and the prior bound the weights where q's tails are thinner than the posterior's.

    Args:
        joint: the posterior.
        u: draws of q in unconstrained space, shape (K, dim).
        proper: whether the prior can be drawn from.
        draws: number of draws in the last round.
        seed: fixes the draws.

    Reference: Hesterberg, "Weighted average importance sampling and defensive mixture distributions" (1995); Cappé et al.,
    "Population Monte Carlo" (2004).
    """
    prior = _from_prior(joint, seed) if proper else None
    space = Whitened(joint, u)
    start = space
    for step in range(ROUNDS):
        with space.evaluated(seed + step):
            z, log_weights = _round(space, [(start, 0.3), (space, 0.7)], prior, ROUND_DRAWS)
        weights, ess = _tempered(log_weights, MIN_ESS_PER_DIM * joint.dim + 20)
        space = Whitened(joint, space.points(z), weights)
        if step and ess > 0.3 * len(z):
            break
    with space.evaluated(seed + ROUNDS):
        z, log_weights = _round(space, [(start, 0.1), (space, 0.9)], prior, draws)
    log_weights = log_weights.double().clamp(min=-1e300)
    smoothed, khat = psis(log_weights)
    h = joint.constrain(space.points(z))
    table = scalars(quantities(joint.model, h))
    return Importance(table, h, log_weights, None, smoothed, float(khat), None, proper)


def _round(space: Whitened, parts: list[tuple[Whitened, float]], prior: Tensor | None, draws: int) -> tuple[Tensor, Tensor]:
    """Draws in the coordinates of `space`, and their log weights p(x, u) / r(u)."""
    share = 0.0 if prior is None else min(0.15, len(prior) / draws)
    found, densities = [], []
    for own, weight in parts:
        for spread, part in SPREADS:
            count = round((1 - share) * weight * part * draws)
            noise = torch.randn(count, space.dim, dtype=space.centre.dtype)
            df = max(MIN_DF, float(space.dim))
            chi = torch.distributions.Chi2(torch.tensor(df, dtype=noise.dtype)).sample((count, 1))
            found.append(own.points(spread * noise * (df / chi).sqrt()))
            densities.append((own, spread, count))
    count = 0 if prior is None else round(share * draws)
    if prior is not None:
        found.append(prior[:count])
    u = torch.cat(found)
    z = space.whiten(u)
    log_p, log_prior = space.log_factors(z)
    logs = [_log_student(own.whiten(u), spread) - own.log_det + log(n / len(u)) for own, spread, n in densities]
    if count:
        logs.append(log_prior + log(count / len(u)))
    return z, log_p - torch.stack(logs).logsumexp(0)


def _log_student(z: Tensor, spread: float) -> Tensor:
    dim = z.shape[-1]
    df = max(MIN_DF, float(dim))
    constant = lgamma((df + dim) / 2) - lgamma(df / 2) - 0.5 * dim * log(df * pi) - dim * log(spread)
    return constant - 0.5 * (df + dim) * (z / spread).square().sum(-1).div(df).log1p()


def _tempered(log_weights: Tensor, least: float) -> tuple[Tensor, float]:
    """Normalised weights, raised to a power that leaves `least` effective draws; and the effective draws of power 1."""
    power = 1.0
    first = None
    while True:
        weights = (power * log_weights).nan_to_num(nan=-torch.inf).softmax(0)
        ess = float(1 / weights.square().sum())
        first = ess if first is None else first
        if ess >= least or power < 1e-3:
            return weights, first
        power *= 0.7


def _from_prior(joint: LogJoint, seed: int) -> Tensor | None:
    """Draws of the prior in unconstrained space; None if it cannot be drawn from."""
    with isolated(seed), torch.no_grad():
        try:
            h = draw_all(joint.model, Prior(joint.model), joint.args, draws=PRIOR_DRAWS).h
            u = joint.unconstrain(h)
        except (ValueError, RuntimeError, NotImplementedError):
            return None
    return u[u.isfinite().all(-1)].to(joint.latents.dtype)
