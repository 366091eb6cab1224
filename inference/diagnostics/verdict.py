"""The verdict on a fitted q: one finding each on means, sds, tails and evidence."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

import pandas as pd

from .drift import Change
from .importance import Importance
from .modes import Mode

__all__ = ["Decision", "Finding", "Verdict"]


class Decision(Enum):
    """The decision on one kind of quantity computed from q."""

    USE = "use"
    CORRECT = "use with importance correction"
    REFUSE = "do not use"


@dataclass(frozen=True)
class Finding:
    """The decision on one kind of quantity, with its reason and the next step."""

    quantity: str
    """means, sds, tails or evidence."""
    decision: Decision
    evidence: str
    """The reason for the decision."""
    next_step: str
    """The recommended action; empty if q may be used as it is, or if there is none."""


@dataclass(frozen=True)
class Verdict:
    """The findings on means, sds, tails and evidence, and the numbers behind them."""

    findings: tuple[Finding, ...]
    khat: float
    """The k̂ on which corrections depend: the largest over the data if all latents are local, else the joint one."""
    ess: float
    """Effective number of draws; NaN if k̂ > 1."""
    weighted: Importance = field(repr=False)
    """Draws from q and their weights."""
    missed: tuple[Mode, ...] = field(repr=False)
    """Modes of the posterior outside q."""
    defended: Importance | None = field(default=None, repr=False)
    """Draws from `guides.Defensive`, if q is over all latents at once and the prior is proper."""
    moved: Change | None = field(default=None, repr=False)
    """Change, by moves along the posterior, of the moments with which q is compared."""

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
