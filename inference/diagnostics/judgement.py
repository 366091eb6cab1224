"""Findings about q from estimates of the posterior that were made in different ways."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf, isfinite, log1p

import torch
from scipy.stats import norm
from torch import Tensor

from guides import Amortized, FullRank, Guide, MeanField

from ..fitting.fit import Fit
from ..optimisers import Solver
from ..programs.bound import unwrap
from ..stopping import MaxSeconds, MaxSteps
from .importance import Importance
from .modes import Mode
from .references import TAIL, Estimated, Reference
from .verdict import Decision, Finding

__all__ = ["Estimates", "findings", "next_step"]

MAX_MEAN_ERROR = 0.2
"""Largest estimated error of a mean, in posterior sds, with which q's means are used as they are."""
MAX_SD_ERROR = 0.2
"""Largest estimated error of an sd, as a share of the posterior sd, with which q's sds are used as they are."""
MAX_QUANTILE_ERROR = 0.3
"""Largest estimated error of a 2.5 % or 97.5 % quantile, in posterior sds, with which q's tails are used as they are."""
MAX_ELBO_GAP = 0.1
"""Largest estimated gap log p(x) − ELBO, in nats, with which the ELBO is used as it is."""
MAX_CHANGE = 0.1
"""Largest difference between two estimates, in posterior sds, that is not called a contradiction."""
SURE = 4.5
"""Standard errors of a difference that is certain: by chance one in 150 000."""
MAX_CORRECTED_ERROR = 0.75
"""Largest difference of corrected moments from another estimate, as a share of the limit on the error."""
MAX_ERROR_OF_DECISION = 0.3
"""Largest standard error with which an estimate decides, as a share of the limit on the error."""
MIN_DIM_FOR_MOVES_ALONE = 11
"""Dimensions from which moves decide alone. In fewer, weights of wide draws fail only for a posterior that moves do not cross
either, such as one with a neck."""


@dataclass(frozen=True)
class Quantity:
    """What is compared, and how far it may be off."""

    name: str
    fields: tuple[str, ...]
    limit: float
    unit: str


QUANTITIES = (
    Quantity("means", ("mean",), MAX_MEAN_ERROR, "posterior sds"),
    Quantity("sds", ("sd",), MAX_SD_ERROR, "of the posterior sd"),
    Quantity("tails", ("low", "high"), MAX_QUANTILE_ERROR, "posterior sds in a 95 % interval"),
)


@dataclass(frozen=True)
class Estimates:
    """q, and estimates of the posterior."""

    weighted: Importance
    """Draws of q with their weights."""
    q: Reference
    references: tuple[Reference, ...]
    """The first one is from `weighted`."""
    wider: Importance | None
    """Weighted draws from a wider proposal."""
    missed: tuple[Mode, ...]
    dim: int
    untested: str
    """Why there are no moves and no search for modes; empty if there are."""

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the scalars."""
        return self.weighted.scalars.names

    @property
    def own(self) -> Reference:
        """The estimate by q's own weights."""
        return self.references[0]

    @property
    def exact(self) -> bool:
        """Whether all weights are equal, so that the difference between q and its own weighted draws has no noise."""
        return self.weighted.worst == -inf

    @property
    def reliable(self) -> list[Reference]:
        """References that can be believed, the most precise first."""
        good = [r for r in self.references if r.reliable]
        alone = good and all(r is self.references[-1] for r in good) and len(self.references) > 1
        if alone and self.wider is not None and self.dim < MIN_DIM_FOR_MOVES_ALONE:
            return []
        by_error = sorted(good, key=lambda r: float(torch.maximum(r.error.mean, r.error.sd).nan_to_num(inf).max()))
        return sorted(by_error, key=lambda r: not (self.exact and r is self.own))

    @property
    def khat(self) -> str:
        """k̂, in words."""
        own = f"k̂ {self.weighted.worst:.2f}"
        return own if self.wider is None else f"{own}, of wider draws {self.wider.worst:.2f}"

    def contradiction(self, fields: tuple[str, ...]) -> str:
        """A clause about the first reliable estimate that q's own reliable weights contradict; empty if there is none."""
        if not self.own.reliable:
            return ""
        for other in reversed(self.references[1:]):
            if not other.reliable:
                continue
            for name in fields:
                one, two = getattr(self.own.estimate, name), getattr(other.estimate, name)
                change = (two / one).log() if name == "sd" else (two - one) / other.estimate.sd
                noise = (getattr(self.own.error, name) ** 2 + getattr(other.error, name) ** 2).sqrt()
                wrong = (change.abs() > MAX_CHANGE) & (change.abs() > SURE * noise)
                if bool(wrong.any()):
                    worst = int(change.abs().where(wrong, -torch.ones_like(change)).argmax())
                    words = {"mean": "mean", "sd": "log sd", "low": "2.5 % quantile", "high": "97.5 % quantile"}
                    unit = "" if name == "sd" else " sds"
                    return (
                        f"k̂ is unreliable: {other.by} change the weighted {words[name]} of {self.names[worst]} by "
                        f"{float(change[worst]):+.2f}{unit}"
                    )
        return ""


def findings(estimates: Estimates, step: str) -> tuple[Finding, ...]:
    """The findings on means, sds, tails and evidence; `step` is recommended if q may not be used as it is."""
    found = [_of_moments(estimates, quantity, step) for quantity in QUANTITIES]
    means, sds, tails = found
    order = (Decision.USE, Decision.CORRECT, Decision.REFUSE)
    if order.index(tails.decision) < order.index(sds.decision):
        tails = Finding("tails", sds.decision, f"the sds are not to be used: {sds.evidence}", sds.next_step)
    return means, sds, tails, _of_evidence(estimates, step)


def next_step(fit: Fit, weighted: Importance, truth: Estimated) -> str:
    """The most promising step, given why the fit ended, the kind of guide, and the quantity with the largest error."""
    own = unwrap(fit.guide)
    family = own.family if isinstance(own, Guide) else None
    q = weighted.moments()
    error = (q.mean - truth.mean).abs() / truth.sd + (q.sd / truth.sd).log().abs()
    worst = weighted.scalars.names[int(error.nan_to_num(inf).argmax())].split("[")[0]
    if isinstance(own, Amortized):
        step = "refine λ per datum (a Local guide, or SemiAmortized), then try a larger encoder"
    elif isinstance(family, MeanField):
        step = f"use a richer family (FullRank, or Structured for hierarchical models); then reparameterise site {worst!r}"
    elif isinstance(family, FullRank):
        step = f"reparameterise site {worst!r} (non-centred), use a flow, or run NUTS"
    else:
        step = f"use a richer family, reparameterise site {worst!r}, or run NUTS"
    if _cut_off(fit):
        return f"first fit longer: the fit was cut off, it {fit.stop.reason}; then {step}"
    return step


def _cut_off(fit: Fit) -> bool:
    return not fit.stop.converged and isinstance(fit.stop.rule, (MaxSteps, MaxSeconds, Solver))


def _of_moments(estimates: Estimates, quantity: Quantity, step: str) -> Finding:
    name, fields = quantity.name, quantity.fields
    if missing := _without_moment(estimates, quantity):
        return _finding(name, Decision.REFUSE, missing, step)
    contradiction = estimates.contradiction(fields)
    references = [r for r in estimates.reliable if not (contradiction and r is estimates.own)]
    if not references:
        worst, size = _largest(*estimates.own.off(estimates.q, fields))
        reason = f"no reliable estimate of the posterior ({estimates.khat}); {estimates.names[worst]} seems off by {size:.2g}"
        reason = f"{_modes(estimates)}; {reason}" if estimates.missed else reason
        return _finding(name, Decision.REFUSE, f"{reason} {quantity.unit}", step)
    errors = [reference.off(estimates.q, fields) for reference in references]
    worst, size = _largest(*errors[0])
    noise = 0.0 if estimates.exact and references[0] is estimates.own else float(errors[0][1].max())
    sure = any(bool((error - quantity.limit > SURE * se).any()) for error, se in errors[1:])
    by_mode = _by_modes(estimates, estimates.own if estimates.own.reliable else references[0], quantity)
    close = size <= quantity.limit and noise <= MAX_ERROR_OF_DECISION * quantity.limit and not sure
    text = f"largest error {size:.2f} ± {float(errors[0][1][worst]):.2f} {quantity.unit}, of {estimates.names[worst]}"
    text = f"{text}, by {references[0].by}; {estimates.khat}"
    if by_mode > quantity.limit:
        return _finding(name, Decision.REFUSE, f"{_modes(estimates)}: error {by_mode:.2f} {quantity.unit}", _for_modes(step))
    if contradiction and not close:
        text = f"{contradiction}; {estimates.khat}"
    decision = _decision(close=close, correctable=_correctable(estimates, quantity) and not contradiction)
    return _finding(name, decision, text, step)


def _correctable(estimates: Estimates, quantity: Quantity) -> bool:
    """Whether q's own weights give the quantity: their k̂ is low, and no other estimate is far from theirs."""
    if not estimates.own.reliable:
        return False
    own = estimates.own
    others = [other for other in estimates.references[1:] if other.reliable]
    if any(_largest(*other.off(own, quantity.fields))[1] > MAX_CORRECTED_ERROR * quantity.limit for other in others):
        return False
    return _by_modes(estimates, own, quantity, q=own) <= quantity.limit


def _by_modes(estimates: Estimates, reference: Reference, quantity: Quantity, q: Reference | None = None) -> float:
    """Largest error of q if the posterior is the reference and the missed modes together; 0 without missed modes."""
    if not estimates.missed:
        return 0.0
    q = estimates.q if q is None else q
    shares = torch.tensor([1 - sum(m.share for m in estimates.missed), *(m.share for m in estimates.missed)]).double()
    if quantity.name == "tails":
        return quantity.limit * float(shares[1:].sum()) / (TAIL / 2)
    base = reference.estimate
    means = torch.stack([base.mean, *(m.moments.mean for m in estimates.missed)])
    sds = torch.stack([base.sd, *(m.moments.sd for m in estimates.missed)])
    mean = shares @ means
    sd = (shares @ (sds**2 + (means - mean) ** 2)).sqrt()
    own = q.estimate
    error = (own.mean - mean).abs() / sd if quantity.name == "means" else (own.sd / sd - 1).abs()
    return float(error.nan_to_num(inf).max())


def _modes(estimates: Estimates) -> str:
    share = sum(mode.share for mode in estimates.missed)
    modes = "a mode" if len(estimates.missed) == 1 else f"{len(estimates.missed)} modes"
    return f"q misses {modes} of the posterior with about {_percent(share)} of the mass"


def _percent(share: float) -> str:
    return f"{100 * share:.2g} %" if share < 0.995 else "all"


def _for_modes(step: str) -> str:
    first = step.split("; then ", maxsplit=1)[0] + "; then " if step.startswith("first fit longer") else ""
    return f"{first}use a mixture family, start from several points and compare the ELBOs, or run NUTS from several points"


def _without_moment(estimates: Estimates, quantity: Quantity) -> str:
    """A sentence about a moment that may not exist; empty if all seem to."""
    if estimates.wider is None or quantity.name == "tails" or not estimates.references[1].reliable:
        return ""
    if estimates.exact:  # q is proportional to the posterior where it draws, and may have heavy tails too
        return ""
    # Errors of means are in units of sds, so means need them too.
    khat, name = estimates.wider.moment_khat(2)
    if khat <= 1.0:
        return ""
    return f"the posterior sd of {name} may not exist: its weighted terms have k̂ {khat:.2f}"


def _of_evidence(estimates: Estimates, step: str) -> Finding:
    weighted, wider = estimates.weighted, estimates.wider
    if not weighted.proper:
        return Finding("evidence", Decision.REFUSE, "the prior is improper, so no evidence exists for any q", "")
    own = weighted.log_evidence
    elbo = float(weighted.log_weights.mean())
    contradiction = estimates.contradiction(("mean", "sd"))
    sources = [("importance sampling", own)] if estimates.own.reliable and not contradiction else []
    if wider is not None and any(r.reliable for r in estimates.references[1:2]):
        sources.append(("wider draws", wider.log_evidence))
    if not sources:
        reason = f"ELBO {elbo:.3f}, but no reliable estimate of log p(x); {estimates.khat}"
        return _finding("evidence", Decision.REFUSE, _with_modes(estimates, reason), step)
    by, best = min(sources, key=lambda source: source[1].se)
    apart = abs(sources[0][1].value - sources[-1][1].value)
    noise = (sources[0][1].se ** 2 + sources[-1][1].se ** 2) ** 0.5
    agree = apart <= MAX_ELBO_GAP / 2 + SURE * noise
    gap = best.value - elbo
    unseen = -log1p(-min(0.999, sum(mode.share for mode in estimates.missed)))
    # What the best estimate already has above that by q's own draws is seen.
    unseen = max(0.0, unseen - max(0.0, best.value - own.value)) if by == "wider draws" else unseen
    text = f"ELBO {elbo:.3f}, log p(x) {best.value:.3f} ± {best.se:.3f} by {by}; {estimates.khat}"
    close = agree and gap <= MAX_ELBO_GAP and best.se <= MAX_ELBO_GAP * MAX_ERROR_OF_DECISION and isfinite(gap)
    text = f"{text}; {contradiction}" if contradiction and not close else text
    if unseen > MAX_ELBO_GAP or (unseen and gap + unseen > MAX_ELBO_GAP >= gap):
        return _finding("evidence", Decision.REFUSE, _with_modes(estimates, text), _for_modes(step))
    correctable = agree and not contradiction and estimates.own.reliable and own.se <= MAX_ELBO_GAP and isfinite(gap)
    return _finding("evidence", _decision(close=close, correctable=correctable), text, step)


def _with_modes(estimates: Estimates, text: str) -> str:
    return f"{_modes(estimates)}; {text}" if estimates.missed else text


def _largest(error: Tensor, se: Tensor) -> tuple[int, float]:
    """Position and size of the largest error, less what the largest of so many standard errors adds by chance."""
    by_chance = float(norm.isf(1 / (len(error) + 1)))
    error = (error - by_chance * se.nan_to_num(posinf=0.0)).clamp(min=0.0).nan_to_num(nan=inf)
    worst = int(error.argmax())
    return worst, float(error[worst])


def _decision(*, close: bool, correctable: bool) -> Decision:
    """Use q as it is if a reliable estimate finds it close; else correct it if its own weights are reliable."""
    if close:
        return Decision.USE
    return Decision.CORRECT if correctable else Decision.REFUSE


def _finding(name: str, decision: Decision, reason: str, step: str) -> Finding:
    correct = "use the weighted draws of Verdict.weighted: corrected() and log_evidence"
    steps = {Decision.USE: "", Decision.CORRECT: correct, Decision.REFUSE: step}
    return Finding(name, decision, reason, steps[decision])
