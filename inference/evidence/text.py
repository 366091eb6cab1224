"""How an estimate of log p(x) prints."""

from __future__ import annotations

from typing import Any

from ..programs.text import html_table, number, table, with_error

__all__ = ["evidence_html", "evidence_rows", "evidence_text"]


def evidence_rows(evidence: Any) -> list[list[str]]:
    """The total with its error, the mean over the data if each has its own weights, and how many weights count."""
    count = max(1, evidence.value.numel())
    rows = [["log p(x)", with_error(evidence.mean * count, evidence.mean_se * count)]]
    if evidence.value.dim():
        rows.append([f"log p(x) / {count} data", with_error(evidence.mean, evidence.mean_se)])
    rows.append(["effective draws", f"{float(evidence.ess.min()):.0f} of {evidence.draws}"])
    rows.append(["Pareto k̂", number(float(evidence.khat.max()))])
    return rows


def evidence_text(evidence: Any) -> str:
    """The rows as text."""
    return table(evidence_rows(evidence), title=_title(evidence))


def evidence_html(evidence: Any) -> str:
    """The rows as HTML."""
    return html_table(evidence_rows(evidence), title=_title(evidence))


def _title(evidence: Any) -> str:
    return f"{evidence.bound} bound on log p(x) in expectation, from {evidence.draws} draws, in nats"
