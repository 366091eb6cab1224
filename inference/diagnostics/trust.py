"""A verdict on a fitted q: which of its results may be used, and what to do about the others."""

from __future__ import annotations

from math import log, nan
from typing import Any

from torch import Tensor

from ..fitting.fit import Fit
from ..programs.arguments import checked
from ..programs.log_joint import LogJoint
from .drift import Change
from .importance import Importance, importance
from .judgement import Estimates, findings, next_step
from .modes import Mode, search
from .references import Reference, by_moves, by_weights, of_q
from .verdict import Verdict
from .whitened import mapped
from .wider import wider_draws

__all__ = ["trust"]

MIN_DRAWS = 500
"""Draws that the estimate of k̂ needs, with a standard error between 0.1 and 0.2."""
MAX_WIDER_DIM = 60
"""Latent dimensions up to which wider draws are weighted. In more, their weights vary too much even for an exact q."""
MAX_SEARCH_DIM = 300
"""Latent dimensions up to which modes are searched for: the mass of each takes a Hessian."""
MAX_MOVES_DIM = 5000
"""Latent dimensions up to which draws are moved."""
MAX_KHAT_FOR_ESS = 1.0
"""Above this k̂ the weights have no finite mean, and no effective number of draws is reported."""


@checked
def trust(fit: Fit, x: Tensor | tuple[Any, ...], *, draws: int = 10_000, seed: int = 0) -> Verdict:
    """Decides whether the means, sds, tails and ELBO of a fit may be used.

    q is compared with up to three estimates of the posterior, which fail in different ways:

    - q's own draws, weighted by the posterior. They correct q if necessary.
    - weighted draws of a wider proposal, which is fitted to the posterior and has a share of a proper prior mixed in. Their
      weights stay small where q's tails are too thin. They serve in at most 60 dimensions.
    - draws of q after Hamiltonian moves along the posterior, which need no weights and so serve in many dimensions.

    Weights are reliable if Pareto's k̂ is below 0.7 by a standard error and at least 400 draws are effective. Moves are
    reliable if they forget where they started. q is used as it is if the most precise reliable estimate finds every error
    below its limit, and no other contradicts. So a large k̂ of q's own draws alone refuses nothing, and a small one alone
    proves nothing. The limits are 0.2 posterior sds for means, 20 % for sds, 0.3 posterior sds for 2.5 % and 97.5 % quantiles,
    and 0.1 nats for the ELBO.

    No estimate sees a mode in which nothing is drawn. Modes are searched for by a scan of the density and by climbs from
    distant points; one that q misses counts for each quantity by its share of the mass and its distance. Verdict.searched
    says where was looked. The verdict concerns q, never the model.

    Args:
        fit: a finished fit.
        x: its data.
        draws: at least 500.
        seed: fixes the draws.

    Raises:
        TypeError, ValueError: for bad input; also for a guide that is a point mass.

    References: Yao, Vehtari, Simpson & Gelman, "Yes, but did it work?" (2018); Dhaka et al., "Challenges and opportunities in
    high-dimensional variational inference" (2021); Owen & Zhou, "Safe and effective importance sampling" (2000); Gilks &
    Berzuini, "Following a moving target" (2001).
    """
    if draws < MIN_DRAWS:
        raise ValueError(f"draws must be at least {MIN_DRAWS}, to estimate k̂, but is {draws}.")
    weighted = importance(fit.model, fit.guide, x, draws=draws, seed=seed)
    q = of_q(weighted)
    references = [by_weights("importance sampling", weighted)]
    found = mapped(fit.model, x, weighted.h)
    if isinstance(found, str):
        estimates = Estimates(weighted, q, tuple(references), None, (), 0, found)
        searched = f"modes were not searched for, because the density cannot be mapped over points: {found}"
        return _verdict(fit, estimates, searched, None)
    joint, u = found
    usable = u.isfinite().all(-1) & (weighted.log_weights > -1e299)
    u = u[usable]
    wider = None
    if joint.dim <= MAX_WIDER_DIM and weighted.khat_per_datum is None:
        # With another seed, because a comparison of two estimates needs independent draws.
        wider = wider_draws(joint, u, proper=weighted.proper, seed=seed + 1)
        references.append(by_weights("wider draws", wider))
    moved = None
    if joint.dim <= MAX_MOVES_DIM:
        moved = by_moves(joint, u, weighted.scalars.draws[usable], x, seed=seed + 2)
        references.append(moved)
    missed = _missed(joint, u, weighted, wider, references, seed=seed + 3)
    estimates = Estimates(weighted, q, tuple(references), wider, missed, joint.dim, "")
    return _verdict(fit, estimates, _searched(joint), moved)


def _missed(
    joint: LogJoint, u: Tensor, weighted: Importance, wider: Importance | None, references: list[Reference], *, seed: int
) -> tuple[Mode, ...]:
    if joint.dim > MAX_SEARCH_DIM:
        return ()
    judge = wider if wider is not None and references[1].reliable else weighted
    # For an improper prior this level has an unknown constant, but the mass of a mode has the same one.
    level = float(judge.log_weights.logsumexp(0)) - log(len(judge.log_weights))
    return tuple(search(joint, u, level, seed=seed, proper=weighted.proper))


def _searched(joint: LogJoint) -> str:
    if joint.dim > MAX_SEARCH_DIM:
        return f"modes were not searched for: {joint.dim} latent dimensions are more than {MAX_SEARCH_DIM}"
    text = "modes were searched for up to 40 sds from q along each coordinate, and from draws of the prior"
    return text if joint.dim <= 2 else f"{text}; in {joint.dim} dimensions one much narrower than q can stay hidden"


def _verdict(fit: Fit, estimates: Estimates, searched: str, moved: Reference | None) -> Verdict:
    weighted = estimates.weighted
    judges = estimates.reliable or [estimates.own]
    found = findings(estimates, next_step(fit, weighted, judges[0].estimate))
    ess = weighted.ess if weighted.worst <= MAX_KHAT_FOR_ESS else nan
    change = None if moved is None else _change(estimates.q, moved)
    return Verdict(found, weighted.worst, ess, weighted, estimates.missed, estimates.wider, change, searched)


def _change(before: Reference, moved: Reference) -> Change:
    q, truth = before.estimate, moved.estimate
    mean, sd = (truth.mean - q.mean) / truth.sd, (truth.sd / q.sd).log()
    return Change(mean, sd, mean / moved.error.mean.clamp(min=1e-12), sd / moved.error.sd.clamp(min=1e-12))
