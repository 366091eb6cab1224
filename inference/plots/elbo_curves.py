"""ELBO curves: the ELBO of each guide approaching log p(x) during its fit."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, isfinite
from typing import NamedTuple

import torch
from matplotlib.figure import Figure
from torch import Tensor

__all__ = ["Panel", "elbo_curves"]


class Panel(NamedTuple):
    """One fit. All numbers are totals over the data, in nats; NaN where unknown."""

    name: str
    nelbo: Tensor
    """The loss at each step, shape (steps,)."""
    elbo: float
    """The ELBO at the end."""
    evidence: float
    """log p(x)."""
    best: float
    """The highest ELBO of the guide's family."""


def elbo_curves(panels: Sequence[Panel], *, rows: int, title: str, shade: bool) -> Figure:
    """One panel for each fit: ELBO per datum against the step, log p(x) above it, and the KL between them shaded.

    The curve is a running mean of the noisy losses over 2 % of the steps. A dotted line marks the family's best ELBO if it is
    known and below log p(x).

    Args:
        panels: the fits.
        rows: N, the number of data.
        title: title of the figure.
        shade: whether to shade the KL; False if the model was learned too, because log p(x) then changed during the fit.
    """
    columns = max(1, min(3, len(panels)))
    lines = max(1, ceil(len(panels) / columns))
    figure = Figure(figsize=(4.2 * columns, 3.0 * lines), layout="constrained")
    if not panels:
        figure.suptitle(f"{title}: no guide has a finite ELBO")
        return figure
    axes = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False).flatten()
    curves = [_smooth(-panel.nelbo / rows) for panel in panels]
    for axis, panel, (steps, value) in zip(axes, panels, curves, strict=False):
        evidence, best = panel.evidence / rows, panel.best / rows
        axis.plot(steps, value, color="C0", label="ELBO")
        if isfinite(evidence):
            axis.axhline(evidence, color="k", linewidth=1, label="log p(x)")
            if shade:
                axis.fill_between(steps, value, evidence, color="C0", alpha=0.2, linewidth=0, label="KL(q ‖ p(h|x))")
        if isfinite(best) and evidence - best > 1e-6 * abs(evidence):
            axis.axhline(best, color="C3", linestyle=":", label="best ELBO of the family")
        gap = f"\ngap {evidence - panel.elbo / rows:.4f} nats per datum" if isfinite(evidence) else ""
        axis.set_title(panel.name + gap, fontsize=9)
    for axis in axes[len(panels) :]:
        axis.set_visible(False)
    top = max(
        [float(value.max()) for _, value in curves] + [panel.evidence / rows for panel in panels if isfinite(panel.evidence)]
    )
    bottom = min(float(value[len(value) // 10]) for _, value in curves)
    axes[0].set_ylim(bottom - 0.05 * (top - bottom), top + 0.1 * (top - bottom))
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper right", ncols=4, fontsize=8)
    figure.suptitle(f"{title}: how tight is the bound?", fontsize=11, x=0.01, ha="left")
    figure.supxlabel("step", fontsize=9)
    figure.supylabel("nats per datum", fontsize=9)
    return figure


def _smooth(value: Tensor) -> tuple[Tensor, Tensor]:
    """Steps in the middle of the windows, and the running means over the windows."""
    width = max(1, len(value) // 50)
    return torch.arange(len(value) - width + 1) + width // 2, value.unfold(0, width, 1).mean(-1)
