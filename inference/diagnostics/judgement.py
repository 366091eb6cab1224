"""Findings from importance estimates of the posterior and from the tests of these estimates."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from math import inf, isfinite
from typing import Any

from torch import Tensor

from guides import Amortized, FullRank, Guide, MeanField

from ..evidence.psis import MAX_KHAT, MAX_KHAT_OF_FINITE_VARIANCE
from ..programs.bound import unwrap
from .drift import Change, change
from .importance import Importance, Moments
from .verdict import Decision, Finding

__all__ = ["Estimates", "findings", "khat_error", "next_step", "refusals", "reliable"]

MAX_MEAN_ERROR = 0.2
"""Largest estimated error of a mean, in posterior sds, with which q's means are used as they are."""
MAX_SD_ERROR = 0.2
"""Largest estimated error of an sd, as a share of the posterior sd, with which q's sds are used as they are."""
MAX_ELBO_GAP = 0.1
"""Largest estimated gap log p(x) − ELBO, in nats, with which the ELBO is used as it is."""
MAX_CHANGE = 0.1
"""Largest change of a moment that a test tolerates, in posterior sds for means and as a log ratio for sds. It is below the
limits on errors, because a test does not undo an error completely."""


def khat_error(weighted: Importance) -> float:
    """Standard error of k̂: (1 + k) / √M for the M = 3 √K weights of the tail."""
    if weighted.worst == -inf:
        return 0.0
    return (1 + max(weighted.worst, 0.0)) / (3 * len(weighted.log_weights) ** 0.5) ** 0.5


def reliable(weighted: Importance) -> bool:
    """Whether corrections by these weights are reliable: k̂ is below the limit by at least a standard error."""
    return _upper_khat(weighted) <= MAX_KHAT


@dataclass(frozen=True)
class Estimates:
    """Importance estimates of the posterior's moments, and the tests of these estimates."""

    weighted: Importance
    """From draws of q."""
    defended: Importance | None
    """From draws of q with a share of the prior mixed in, if there are any."""
    moved: Change | None = None
    """Change of the moments of `judge` by moves along the posterior, if it was measured."""

    @property
    def judge(self) -> Importance:
        """The estimate with which q is compared: from q's own draws unless only the defended one can be reliable."""
        return self.defended if self.defended is not None and not reliable(self.weighted) else self.weighted

    @cached_property
    def tests(self) -> list[tuple[str, Change]]:
        """The tests that were made, each with the subject and verb of a sentence about its result."""
        made = [] if self.moved is None else [("moves along the posterior change", self.moved)]
        if self.judge is self.weighted and self.defended is not None and reliable(self.defended):
            made.append(("mixing prior draws in changes", change(self.weighted, self.defended)))
        return made

    def failure(self, *fields: str) -> str:
        """A clause about the first failed test of the ``"mean"`` or ``"sd"``; empty if all tests pass."""
        names = self.weighted.scalars.names
        for test, found in self.tests:
            for name in fields:
                worst = found.worst(name, MAX_CHANGE)
                if worst is not None:
                    moment, unit = ("mean", " sds") if name == "mean" else ("log sd", "")
                    size = float(getattr(found, name)[worst])
                    return f"; k̂ is unreliable: {test} the weighted {moment} of {names[worst]} by {size:+.2f}{unit}"
        return ""

    @property
    def khat(self) -> str:
        """k̂ of both estimates, in words."""
        own = f"k̂ = {self.weighted.worst:.2f}"
        return own if self.defended is None else f"{own}, {self.defended.worst:.2f} with prior draws mixed in"


def findings(estimates: Estimates, step: str) -> tuple[Finding, ...]:
    """The findings on means, sds, tails and evidence; `step` is recommended if q may not be used."""
    q, truth = estimates.weighted.moments(), estimates.judge.corrected()
    means = _of_moments(
        estimates, "means", _mean_error(q, truth), step, limit=MAX_MEAN_ERROR, unit="posterior sd", fields=("mean",)
    )
    sds = _of_moments(
        estimates, "sds", _sd_error(q, truth), step, limit=MAX_SD_ERROR, unit="of the posterior sd", fields=("mean", "sd")
    )
    failure = estimates.failure("mean", "sd")
    close = sds.decision is Decision.USE and _upper_khat(estimates.weighted) <= MAX_KHAT_OF_FINITE_VARIANCE
    decision = _decision(close=close, correctable=reliable(estimates.weighted) and not failure)
    tails = _finding("tails", decision, f"{estimates.khat}; the decision depends on k̂ and on the sds", step)
    return means, sds, tails, _of_evidence(estimates, failure, step)


def refusals(reason: str, step: str) -> tuple[Finding, ...]:
    """Findings that refuse everything for one reason."""
    return tuple(_finding(name, Decision.REFUSE, reason, step) for name in ("means", "sds", "tails", "evidence"))


def next_step(guide: Callable[..., Any], weighted: Importance) -> str:
    """The most promising step, given the kind of guide and the quantity with the largest estimated error."""
    own = unwrap(guide)
    family = own.family if isinstance(own, Guide) else None
    q, corrected = weighted.moments(), weighted.corrected()
    error = _mean_error(q, corrected) + (q.sd / corrected.sd).log().abs()
    worst = weighted.scalars.names[int(error.nan_to_num(inf).argmax())].split("[")[0]
    if isinstance(own, Amortized):
        return "refine λ per datum (a Local guide, or SemiAmortized), then try a larger encoder"
    if isinstance(family, MeanField):
        return f"use a richer family (FullRank, or Structured for hierarchical models); then reparameterise site {worst!r}"
    if isinstance(family, FullRank):
        return f"reparameterise site {worst!r} (non-centred), use a flow, or run NUTS"
    return f"use a richer family, reparameterise site {worst!r}, or run NUTS"


def _of_moments(
    estimates: Estimates, name: str, error: Tensor, step: str, *, limit: float, unit: str, fields: tuple[str, ...]
) -> Finding:
    error = error.nan_to_num(inf)
    worst = int(error.argmax())
    failure = estimates.failure(*fields)
    close = reliable(estimates.judge) and not failure and float(error[worst]) <= limit
    detail = f"{estimates.weighted.scalars.names[worst]} has the largest estimated error, {float(error[worst]):.2f} {unit}"
    decision = _decision(close=close, correctable=reliable(estimates.weighted) and not failure)
    return _finding(name, decision, f"{detail}; {estimates.khat}{failure}", step)


def _of_evidence(estimates: Estimates, failure: str, step: str) -> Finding:
    weighted, judge = estimates.weighted, estimates.judge
    if not weighted.proper:
        return Finding("evidence", Decision.REFUSE, "the prior is improper, so no evidence exists for any q", "")
    evidence, elbo = judge.log_evidence, float(weighted.log_weights.mean())
    gap = evidence.value - elbo
    text = f"ELBO {elbo:.3f}, importance sampling {evidence.value:.3f} ± {evidence.se:.3f}; {estimates.khat}{failure}"
    close = reliable(judge) and not failure and gap <= MAX_ELBO_GAP
    correctable = reliable(weighted) and not failure and isfinite(gap)
    return _finding("evidence", _decision(close=close, correctable=correctable), text, step)


def _decision(*, close: bool, correctable: bool) -> Decision:
    """Use q as it is if a reliable estimate finds it close; else correct it if its own weights are reliable."""
    if close:
        return Decision.USE
    return Decision.CORRECT if correctable else Decision.REFUSE


def _finding(name: str, decision: Decision, reason: str, step: str) -> Finding:
    correct = "use the weighted draws of Verdict.weighted: corrected() and log_evidence"
    steps = {Decision.USE: "", Decision.CORRECT: correct, Decision.REFUSE: step}
    return Finding(name, decision, reason, steps[decision])


def _upper_khat(weighted: Importance) -> float:
    """k̂ plus one standard error."""
    return weighted.worst + khat_error(weighted)


def _mean_error(moments: Moments, truth: Moments) -> Tensor:
    return ((moments.mean - truth.mean) / truth.sd).abs()


def _sd_error(moments: Moments, truth: Moments) -> Tensor:
    return (moments.sd / truth.sd - 1).abs()
