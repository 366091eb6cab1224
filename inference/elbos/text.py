"""How an estimate of the ELBO prints."""

from __future__ import annotations

from typing import Any

from ..programs.text import html_table, table, with_error

__all__ = ["estimate_html", "estimate_rows", "estimate_text"]


def estimate_rows(estimate: Any) -> list[list[str]]:
    """The ELBO and its two terms with their errors, in nats, and for each datum their mean."""
    total = estimate.total
    rows = [
        ["ELBO", with_error(float(total.elbo), float(total.elbo_se))],
        ["E_q[log p(x|h)]", with_error(float(total.reconstruction), float(total.reconstruction_se))],
        ["KL(q ‖ prior)", with_error(float(total.complexity), float(total.complexity_se))],
    ]
    if estimate.per_datum is not None:
        count = len(estimate.per_datum.elbo)
        rows.append([f"ELBO / {count} data", with_error(float(total.elbo) / count, float(total.elbo_se) / count)])
    return rows


def estimate_text(estimate: Any) -> str:
    """The rows as text."""
    return table(estimate_rows(estimate), title=_title(estimate))


def estimate_html(estimate: Any) -> str:
    """The rows as HTML."""
    return html_table(estimate_rows(estimate), title=_title(estimate))


def _title(estimate: Any) -> str:
    return f"ELBO of {estimate.draws} draws, in nats; higher is better"
