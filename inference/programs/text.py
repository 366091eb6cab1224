"""Numbers with their errors, and small tables, as text and as HTML: how results print."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from math import floor, isfinite, isnan, log10

__all__ = ["html_table", "number", "table", "with_error"]

MAX_DIGITS = 6
"""Decimals of a number whose error is tiny."""


def with_error(value: float, se: float) -> str:
    """A number and its standard error, rounded to two digits of the error: ``-12.34 ± 0.15``."""
    if not isfinite(value):
        return number(value)
    if not isfinite(se):
        return f"{number(value)} ± {number(se)}"
    digits = MAX_DIGITS if se <= 0 else min(MAX_DIGITS, max(0, 1 - floor(log10(se))))
    digits = 3 if se == 0 else digits
    return f"{value:.{digits}f} ± {se:.{digits}f}"


def number(value: float) -> str:
    """A number of which no error is known, to three decimals or four significant digits; a dash for NaN."""
    if isnan(value):
        return "–"
    if not isfinite(value):
        return "inf" if value > 0 else "-inf"
    return f"{value:.3f}" if abs(value) >= 0.1 or value == 0 else f"{value:.4g}"


def table(rows: Sequence[Sequence[str]], *, title: str = "") -> str:
    """Rows as lines of aligned columns; the last column is not padded."""
    widths = [max((len(row[i]) for row in rows), default=0) for i in range(max(map(len, rows), default=0))]
    lines = ["  ".join(cell.ljust(widths[i]) for i, cell in enumerate(row)).rstrip() for row in rows]
    return "\n".join([title, *lines] if title else lines)


def html_table(rows: Sequence[Sequence[str | tuple[str, str]]], *, title: str = "", head: Sequence[str] = ()) -> str:
    """Rows as an HTML table with escaped text; a cell in a colour is a pair of the text and the colour's name."""

    def cell(value: str | tuple[str, str], tag: str = "td") -> str:
        text, colour = value if isinstance(value, tuple) else (value, "")
        style = f"text-align: left; color: {colour}" if colour else "text-align: left"
        return f'<{tag} style="{style}">{escape(text)}</{tag}>'

    caption = f"<caption>{escape(title)}</caption>" if title else ""
    top = f"<thead><tr>{''.join(cell(c, 'th') for c in head)}</tr></thead>" if head else ""
    body = "".join(f"<tr>{''.join(cell(c) for c in row)}</tr>" for row in rows)
    return f"<table>{caption}{top}<tbody>{body}</tbody></table>"
