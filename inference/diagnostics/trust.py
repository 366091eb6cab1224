"""A verdict on a fitted q: which of its results may be used, and what to do about the others."""

from __future__ import annotations

from math import log, nan
from typing import Any

from torch import Tensor

from guides import Defensive, Global
from models import Model

from ..evidence.psis import MAX_KHAT
from ..fitting.fit import Fit
from ..programs.arguments import checked
from ..programs.bound import unwrap
from .drift import Change, drift
from .importance import Importance, importance
from .judgement import Estimates, findings, khat_error, next_step, refusals, reliable
from .modes import Mode, missed_modes
from .verdict import Finding, Verdict

__all__ = ["trust"]

MIN_DRAWS = 500
"""Draws of the first look, enough for a standard error of k̂ between 0.1 and 0.2."""
MAX_FIRST_KHAT = 1.0
"""Above this k̂ of the first look, more draws do not help."""
MAX_DIM = 300
"""Latent dimensions up to which draws are moved and modes are searched for."""


@checked
def trust(fit: Fit, x: Tensor | tuple[Any, ...], *, draws: int = 10_000, seed: int = 0) -> Verdict:
    """Decides whether the means, sds, tails and ELBO of a fit may be used.

    A first look weights 500 draws by the posterior, and refuses q if Pareto's k̂ exceeds 1 by a standard error. Otherwise
    `draws` draws are weighted, or four times as many if k̂ is within a standard error of 0.7. Weights with k̂ below 0.7 by a
    standard error are reliable, and correct q's moments if necessary. If they are not reliable, and q is over all latents at
    once, q is judged by draws with a share of a proper prior mixed in, which bounds the weights. If that estimate is reliable,
    it decides whether q may be used as it is. It corrects nothing, because a correction would rest on q's own weights.

    Importance weights and k̂ cannot detect posterior mass where nothing is drawn, so a reliable estimate must pass three tests:
    draws with a share of the prior mixed in must give the same moments (`diagnostics.change`), moves along the posterior must
    not change the moments (`diagnostics.drift`), and climbs of the posterior from distant points must find no missed mode.
    Quantities that fail a test are refused. The verdict concerns q, never the model.

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
    first = importance(fit.model, fit.guide, x, draws=MIN_DRAWS, seed=seed)
    if first.worst - khat_error(first) > MAX_FIRST_KHAT:
        reason = f"k̂ = {first.worst:.2f} on the first {MIN_DRAWS} draws: the posterior has mass where q rarely draws"
        return _verdict(first, refusals(reason, next_step(fit.guide, first)))
    weighted = _weighted(fit, x, draws=draws, seed=seed)
    defended = _defended(fit, x, weighted, draws=draws, seed=seed)
    judge = Estimates(weighted, defended).judge
    testable = reliable(judge) and sum(value[0].numel() for value in weighted.h.values()) <= MAX_DIM
    if testable and (missed := _missed(fit, x, weighted, judge, seed=seed)):
        return _verdict(weighted, _refused_for(missed), missed=missed, defended=defended)
    moved = drift(fit.model, x, judge, seed=seed) if testable else None
    found = findings(Estimates(weighted, defended, moved), next_step(fit.guide, weighted))
    return _verdict(weighted, found, defended=defended, moved=moved)


def _weighted(fit: Fit, x: Any, *, draws: int, seed: int) -> Importance:
    weighted = importance(fit.model, fit.guide, x, draws=draws, seed=seed)
    if abs(weighted.worst - MAX_KHAT) < khat_error(weighted):
        return importance(fit.model, fit.guide, x, draws=4 * draws, seed=seed)
    return weighted


def _defended(fit: Fit, x: Any, weighted: Importance, *, draws: int, seed: int) -> Importance | None:
    own = unwrap(fit.guide)
    if not (isinstance(own, Global) and weighted.proper and isinstance(unwrap(fit.model), Model)):
        return None
    # With another seed, because a comparison of the two estimates needs independent draws.
    return importance(fit.model, Defensive(own), x, draws=draws, seed=seed + 1)


def _missed(fit: Fit, x: Any, weighted: Importance, judge: Importance, *, seed: int) -> tuple[Mode, ...]:
    # For an improper prior this level has an unknown constant, but the mass of a mode has the same one.
    level = judge.log_weights.logsumexp(0) - log(len(judge.log_weights))
    return tuple(missed_modes(fit.model, x, weighted.h, float(level), seed=seed))


def _refused_for(missed: tuple[Mode, ...]) -> tuple[Finding, ...]:
    share = max(mode.share for mode in missed)
    modes = "a mode" if len(missed) == 1 else f"{len(missed)} modes"
    reason = f"q misses {modes} of the posterior; the largest has about {share:.0%} of the mass that it and q cover"
    step = "use a mixture family, start from several points and compare the ELBOs, or run NUTS from several points"
    return refusals(reason, step)


def _verdict(
    weighted: Importance,
    found: tuple[Finding, ...],
    *,
    missed: tuple[Mode, ...] = (),
    defended: Importance | None = None,
    moved: Change | None = None,
) -> Verdict:
    ess = weighted.ess if weighted.worst <= MAX_FIRST_KHAT else nan
    return Verdict(found, weighted.worst, ess, weighted, missed, defended, moved)
