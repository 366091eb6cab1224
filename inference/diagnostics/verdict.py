"""The verdict on a fitted q: one finding each on means, sds, tails and evidence."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

import pandas as pd

from ..programs.text import html_table, table
from .drift import Change
from .importance import Importance
from .modes import Mode

__all__ = ["Decision", "Finding", "Verdict"]


class Decision(Enum):
    """The decision on one kind of quantity computed from q."""

    USE = "use"
    CORRECT = "use with importance correction"
    REFUSE = "do not use"


COLOURS = {Decision.USE: "green", Decision.CORRECT: "orange", Decision.REFUSE: "red"}


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
    """Weighted draws from a wider proposal with a share of a proper prior mixed in; None in many dimensions."""
    moved: Change | None = field(default=None, repr=False)
    """Change of q's moments by moves along the posterior, if the draws could be moved."""
    searched: str = ""
    """Where modes were searched for, or why they were not."""

    def __getitem__(self, quantity: str) -> Decision:
        """The decision on ``"means"``, ``"sds"``, ``"tails"`` or ``"evidence"``."""
        return next(f.decision for f in self.findings if f.quantity == quantity)

    def __repr__(self) -> str:
        """One line for each finding: quantity, decision, evidence and next step; then where modes were searched for."""
        rows = [
            [f.quantity, f.decision.value, f.evidence + (f" → {f.next_step}" if f.next_step else "")] for f in self.findings
        ]
        return table(rows) + (f"\n({self.searched})" if self.searched else "")

    def _repr_html_(self) -> str:
        rows: list[list[str | tuple[str, str]]] = [
            [f.quantity, (f.decision.value, COLOURS[f.decision]), f.evidence, f.next_step] for f in self.findings
        ]
        return html_table(rows, title=self.searched, head=("quantity", "decision", "evidence", "next step"))

    def to_frame(self) -> pd.DataFrame:
        """One row for each finding."""
        rows = [
            {"quantity": f.quantity, "decision": f.decision.value, "evidence": f.evidence, "next step": f.next_step}
            for f in self.findings
        ]
        return pd.DataFrame(rows)
