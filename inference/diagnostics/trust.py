"""One verdict on whether a fitted q may be used, for what, and what to do if not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from math import isfinite, nan
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from guides import Amortized, Defensive, FullRank, Global, Guide, MeanField
from models import Model

from ..fitting.fit import Fit
from ..programs.bound import unwrap
from .drift import Change, change, drift
from .importance import Importance, Moments, importance
from .modes import Mode, missed_modes

__all__ = ["Decision", "Finding", "Verdict", "trust"]

MEAN, SD = 0.2, 0.2
"""Estimated errors, in posterior sds and as a share, up to which q's means and sds are used as they are."""
DEPENDABLE, FINITE, HOPELESS = 0.7, 0.5, 1.0
"""Pareto k̂ up to which corrections are to be believed, up to which tails are, and beyond which looking on is no use."""
MOVED = 0.1
"""What the tests of an estimate may change of its moments, in the same units; it is less than what they do not undo."""
LARGEST = 300
"""Latent dimensions up to which draws are moved and modes are searched for."""


class Decision(Enum):
    """What may be done with an answer of q."""

    USE = "use"
    CORRECT = "use with importance correction"
    REFUSE = "do not use"


@dataclass(frozen=True)
class Finding:
    """The decision on one kind of answer."""

    quantity: str
    """means, sds, tails or evidence."""
    decision: Decision
    evidence: str
    """What it rests on."""
    next_step: str
    """What to do; empty where q may be used as it is."""


@dataclass(frozen=True)
class Verdict:
    """The findings on means, sds, tails and evidence, and the numbers behind them."""

    findings: tuple[Finding, ...]
    khat: float
    """The k̂ that corrections hang on: per datum, the worst, where all latents are local; else the joint one."""
    ess: float
    weighted: Importance = field(repr=False)
    missed: tuple[Mode, ...] = field(repr=False)
    defended: Importance | None = field(default=None, repr=False)
    """Draws from `guides.Defensive`, where q is over all latents at once and the prior is proper."""
    moved: Change | None = field(default=None, repr=False)
    """What moves along the posterior change of the moments that q is judged by."""

    def __getitem__(self, quantity: str) -> Decision:
        """The decision on ``"means"``, ``"sds"``, ``"tails"`` or ``"evidence"``."""
        return next(f.decision for f in self.findings if f.quantity == quantity)

    def to_frame(self) -> pd.DataFrame:
        """One row for each finding."""
        rows = [
            {"quantity": f.quantity, "decision": f.decision.value, "evidence": f.evidence, "next step": f.next_step}
            for f in self.findings
        ]
        return pd.DataFrame(rows)


def trust(fit: Fit, x: Tensor | tuple[Any, ...], *, draws: int = 10_000, seed: int = 0) -> Verdict:
    """Says of a fit whether its means, sds, tails and ELBO may be used.

    First a few hundred draws are weighed by the posterior; if Pareto's k̂ is beyond 1 by a standard error it stops there. Else
    `draws` draws are weighed, four times as many if k̂ is within a standard error of 0.7: what is below by a standard error is
    dependable, and corrects q's moments where they need it. Where it is not, a q over all latents at once is judged by draws
    with a share of a proper prior mixed in, which bounds the weights: if that estimate is dependable, it says whether q may be
    used as it is; it corrects nothing, as the correction would have to rest on q's own weights.

    Weights are blind where nothing is drawn, and k̂ with them. So a dependable estimate is put to three tests. Draws with a
    share of the prior must give the same moments (`diagnostics.change`). Moves along the posterior must leave them as they are
    (`diagnostics.drift`). And the posterior is climbed from far-away points for modes that are missed. What fails is not used.
    All verdicts are about q; none is about the model.

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
    if draws < 500:
        raise ValueError(f"draws must be at least 500, for k̂ to be known to a tenth, but is {draws}.")
    weighted = importance(fit.model, fit.guide, x, draws=500, seed=seed)
    step = _next_step(fit.guide, weighted)
    if weighted.worst - _error(weighted) > HOPELESS:
        reason = f"k̂ = {weighted.worst:.2f} on the first 500 draws: the posterior has mass that q hardly ever draws"
        return _verdict(weighted, _refused(reason), step)
    weighted = importance(fit.model, fit.guide, x, draws=draws, seed=seed)
    if abs(weighted.worst - DEPENDABLE) < _error(weighted):
        weighted = importance(fit.model, fit.guide, x, draws=4 * draws, seed=seed)
    step = _next_step(fit.guide, weighted)
    defended = _defended(fit, x, weighted, draws=draws, seed=seed)
    judge = defended if defended is not None and not _dependable(weighted) else weighted
    known, small = _dependable(judge), sum(value[0].numel() for value in weighted.h.values()) <= LARGEST
    missed = tuple(_search(fit.model, x, weighted, judge, seed)) if known and small else ()
    if missed:
        mode = max(missed, key=lambda m: m.share)
        reason = f"q misses {len(missed)} mode(s) of the posterior, the largest with about {mode.share:.0%} of what both hold"
        step = "use a mixture family, start from several points and compare the ELBOs, or run NUTS from several points"
        return _verdict(weighted, _refused(reason), step, missed=missed, defended=defended)
    moved = drift(fit.model, x, judge, seed=seed) if known and small else None
    tests = [("moves along the posterior change", moved)]
    if judge is weighted and defended is not None and _dependable(defended):
        tests.append(("a share of the prior among the draws changes", change(weighted, defended)))
    q, truth = weighted.moments(), judge.corrected()
    khat = f"k̂ = {weighted.worst:.2f}" + ("" if defended is None else f", {defended.worst:.2f} with a share of the prior")
    found: list[tuple[str, Decision, str]] = []
    for name, limit, fields in (("means", MEAN, ("mean",)), ("sds", SD, ("mean", "sd"))):
        error = (_mean_error if name == "means" else _sd_error)(q, truth).nan_to_num(torch.inf)
        worst = int(error.argmax())
        unit = "posterior sd" if name == "means" else "of the posterior sd"
        detail = f"largest estimated error {float(error[worst]):.2f} {unit}, at {weighted.scalars.names[worst]}"
        wrong = _failed(tests, fields, weighted.scalars.names)
        close = known and not wrong and float(error[worst]) <= limit
        found.append((name, _decision(_dependable(weighted) and not wrong, close), f"{detail}; {khat}{wrong}"))
    wrong = _failed(tests, ("mean", "sd"), weighted.scalars.names)
    tails = _upper(weighted) <= FINITE and found[1][1] is Decision.USE
    found.append(("tails", _decision(_dependable(weighted) and not wrong, tails), f"{khat}, and sds as above"))
    found.append(("evidence", *_evidence(weighted, judge, khat, wrong)))
    return _verdict(weighted, found, step, defended=defended, moved=moved)


def _upper(weighted: Importance) -> float:
    """k̂ and one standard error of it: it is given no benefit of doubt."""
    return weighted.worst + _error(weighted)


def _error(weighted: Importance) -> float:
    """Standard error of k̂, (1 + k) / √M from the M = 3 √K weights of the tail."""
    if weighted.worst == -torch.inf:
        return 0.0
    return (1 + max(weighted.worst, 0.0)) / (3 * len(weighted.log_weights) ** 0.5) ** 0.5


def _defended(fit: Fit, x: Any, weighted: Importance, *, draws: int, seed: int) -> Importance | None:
    own = unwrap(fit.guide)
    if not (isinstance(own, Global) and weighted.proper and isinstance(unwrap(fit.model), Model)):
        return None
    return importance(fit.model, Defensive(own), x, draws=draws, seed=seed + 1)  # drawn independently, to be compared


def _dependable(weighted: Importance) -> bool:
    return _upper(weighted) <= DEPENDABLE


def _mean_error(moments: Moments, truth: Moments) -> Tensor:
    return ((moments.mean - truth.mean) / truth.sd).abs()


def _sd_error(moments: Moments, truth: Moments) -> Tensor:
    return (moments.sd / truth.sd - 1).abs()


def _failed(tests: list[tuple[str, Change | None]], fields: tuple[str, ...], names: tuple[str, ...]) -> str:
    """Which weighted moment is no moment of the posterior's, if any."""
    for test, found in tests:
        for name in fields:
            worst = None if found is None else found.worst(name, MOVED)
            if worst is not None:
                what, unit = ("mean", " sds") if name == "mean" else ("log sd", "")
                size = float(getattr(found, name)[worst])
                return f"; k̂ is deceived: {test} the weighted {what} of {names[worst]} by {size:+.2f}{unit}"
    return ""


def _refused(reason: str) -> list[tuple[str, Decision, str]]:
    return [(name, Decision.REFUSE, reason) for name in ("means", "sds", "tails", "evidence")]


def _decision(correctable: bool, close: bool) -> Decision:
    """`close`: an estimate that is dependable, of whatever proposal, says that q is near enough."""
    if close:
        return Decision.USE
    return Decision.CORRECT if correctable else Decision.REFUSE


def _evidence(weighted: Importance, judge: Importance, khat: str, wrong: str) -> tuple[Decision, str]:
    if not weighted.proper:
        return Decision.REFUSE, "the prior is improper, so no evidence exists, whatever q is"
    evidence, elbo = judge.log_evidence, float(weighted.log_weights.mean())
    gap = evidence.value - elbo
    text = f"ELBO {elbo:.3f}, importance sampling {evidence.value:.3f} ± {evidence.se:.3f}; {khat}{wrong}"
    correctable = _dependable(weighted) and isfinite(gap) and not wrong
    return _decision(correctable, _dependable(judge) and not wrong and gap <= 0.1), text


def _search(model: Callable[..., Any], x: Any, weighted: Importance, judge: Importance, seed: int) -> list[Mode]:
    # The height of the modes is compared with what q sees, which an improper prior leaves defined up to a constant alike.
    level = judge.log_weights.logsumexp(0) - torch.tensor(float(len(judge.log_weights))).log()
    return missed_modes(model, x, weighted.h, float(level), seed=seed)


def _next_step(guide: Callable[..., Any], weighted: Importance) -> str:
    """What would most likely help, from the guide's make and the quantity with the worst estimated error."""
    own = unwrap(guide)
    family = own.family if isinstance(own, Guide) else None
    q, corrected = weighted.moments(), weighted.corrected()
    error = _mean_error(q, corrected) + (q.sd / corrected.sd).log().abs()
    worst = weighted.scalars.names[int(error.nan_to_num(torch.inf).argmax())].split("[")[0]
    if isinstance(own, Amortized):
        return "refine λ per datum (a Local guide, or SemiAmortized), then try a larger encoder"
    if isinstance(family, MeanField):
        return f"take a richer family (FullRank, or Structured for hierarchical models); then reparameterise site {worst!r}"
    if isinstance(family, FullRank):
        return f"reparameterise site {worst!r} (non-centred), take a flow, or run NUTS"
    return f"take a richer family, reparameterise site {worst!r}, or run NUTS"


def _verdict(
    weighted: Importance,
    found: list[tuple[str, Decision, str]],
    step: str,
    *,
    missed: tuple[Mode, ...] = (),
    defended: Importance | None = None,
    moved: Change | None = None,
) -> Verdict:
    correct = "weigh the draws: Importance.corrected() and Importance.log_evidence"
    steps = {Decision.USE: "", Decision.CORRECT: correct, Decision.REFUSE: step}
    findings = tuple(
        Finding(name, decision, why, "" if "no evidence exists" in why else steps[decision]) for name, decision, why in found
    )
    ess = weighted.ess if weighted.worst <= HOPELESS else nan
    return Verdict(findings, weighted.worst, ess, weighted, missed, defended, moved)
