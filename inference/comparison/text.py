"""How comparisons and gaps print."""

from __future__ import annotations

from typing import Any

from ..programs.text import html_table, number, table, with_error

__all__ = ["comparison_html", "comparison_rows", "comparison_text", "gaps_html", "gaps_rows", "gaps_text"]

COMPARISON_HEAD = ("guide", "ELBO ± SE", "gap", "best gap", "seconds")
GAPS_HEAD = ("quantity", "mean ± SE")


def comparison_rows(comparison: Any) -> list[list[str]]:
    """One row for each guide: ELBO with its error, its gap to log p(x), the part that no λ closes, seconds of a fit."""
    rows = []
    for row in comparison.to_frame().to_dict("records"):
        name = ", ".join(str(row[key]) for key in ("guide", "objective", "optimiser") if row.get(key))
        numbers = [with_error(row["elbo"], row["elbo_se"]), *(number(row[key]) for key in ("gap", "best_gap", "seconds"))]
        rows.append([name, *numbers])
    return rows


def comparison_text(comparison: Any) -> str:
    """The rows as text."""
    return table([list(COMPARISON_HEAD), *comparison_rows(comparison)], title=_title(comparison))


def comparison_html(comparison: Any) -> str:
    """The rows as HTML."""
    return html_table(comparison_rows(comparison), title=_title(comparison), head=COMPARISON_HEAD)


def gaps_rows(gaps: Any) -> list[list[str]]:
    """Evidence, ELBO and the three gaps, means over the data with their errors."""
    rows = [["log p(x)", gaps.evidence], ["ELBO", gaps.elbo], *([name, part] for name, part in gaps.parts.items())]
    return [[name, with_error(part.mean, part.mean_se)] for name, part in rows]


def gaps_text(gaps: Any) -> str:
    """The rows as text, and a line about gaps that cannot be right."""
    lines = table(gaps_rows(gaps), title=_gaps_title(gaps))
    return f"{lines}\n{_failed(gaps)}" if gaps.failed else lines


def gaps_html(gaps: Any) -> str:
    """The rows as HTML."""
    rows = gaps_rows(gaps) + ([["warning", _failed(gaps)]] if gaps.failed else [])
    return html_table(rows, title=_gaps_title(gaps), head=GAPS_HEAD)


def _title(comparison: Any) -> str:
    learned = "; each run learned its own model" if comparison.learned else ""
    return f"{comparison.model}: {comparison.rows} data, totals in nats; gap = log p(x) − ELBO{learned}"


def _gaps_title(gaps: Any) -> str:
    unit = "nats per datum" if gaps.evidence.value.dim() else "nats for all data together"
    return f"log p(x) − ELBO in three parts, {unit}; log p(x) is {gaps.evidence_by}"


def _failed(gaps: Any) -> str:
    return f"negative beyond its error, so a search for the best λ failed or log p(x) is too low: {', '.join(gaps.failed)}"
