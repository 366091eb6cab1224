"""Gap bars: approximation, amortization and optimisation gap side by side."""

from __future__ import annotations

from collections.abc import Mapping

from matplotlib.figure import Figure

__all__ = ["gap_bars"]


def gap_bars(parts: Mapping[str, tuple[float, float]], *, title: str) -> Figure:
    """One bar for each gap, with an error bar of two standard errors on either side.

    Args:
        parts: for each gap its mean over the data and the standard error, in nats per datum.
        title: title of the figure.
    """
    figure = Figure(figsize=(4.5, 3.2), layout="constrained")
    axis = figure.subplots()
    means, errors = zip(*parts.values(), strict=True)
    axis.bar(list(parts), means, yerr=[2 * error for error in errors], capsize=4, color=["C3", "C0", "C2"])
    axis.axhline(0.0, color="k", linewidth=0.8)
    axis.set_ylabel("nats per datum")
    axis.set_title(title, fontsize=10)
    return figure
