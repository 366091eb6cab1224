"""The picture that every lesson draws by hand: the ELBO rising to log p(x), the KL between them shaded."""

from __future__ import annotations

from math import ceil, isfinite
from typing import TYPE_CHECKING

import torch
from matplotlib.figure import Figure
from torch import Tensor

if TYPE_CHECKING:
    from .compare import Comparison, Run

__all__ = ["elbo_picture"]


def elbo_picture(comparison: Comparison) -> Figure:
    """ELBO per datum against the step, log p(x) above it, the KL shaded: a panel for each guide with an ELBO, its first seed.

    The curve is a running mean of the noisy losses over a fiftieth of the steps. A dotted line marks the best ELBO of the
    family where it is known and below log p(x). Where the fit learned the model too, log p(x) is that of its end, and
    nothing is shaded.
    """
    first: dict[str, Run] = {}
    for run in comparison.runs:
        if run.fit is not None and isfinite(run.elbo):
            first.setdefault(run.name, run)
    columns = max(1, min(3, len(first)))
    lines = max(1, ceil(len(first) / columns))
    figure = Figure(figsize=(4.2 * columns, 3.0 * lines), layout="constrained")
    if not first:
        figure.suptitle(f"{comparison.model}: no guide has an ELBO")
        return figure
    axes = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False).flatten()
    curves = {name: _smooth(-run.fit.nelbo / comparison.rows) for name, run in first.items() if run.fit is not None}
    for axis, (name, run) in zip(axes, first.items(), strict=False):
        steps, value = curves[name]
        axis.plot(steps, value, color="C0", label="ELBO")
        if isfinite(run.evidence):
            evidence = run.evidence / comparison.rows
            axis.axhline(evidence, color="k", linewidth=1, label="log p(x)")
            if not comparison.learned:
                axis.fill_between(steps, value, evidence, color="C0", alpha=0.2, linewidth=0, label="KL(q ‖ p(h|x))")
        if isfinite(run.best) and run.evidence - run.best > 1e-6 * abs(run.evidence):
            axis.axhline(run.best / comparison.rows, color="C3", linestyle=":", label="best of the family")
        gap = f"\ngap {(run.evidence - run.elbo) / comparison.rows:.4f} nats per datum" if isfinite(run.evidence) else ""
        axis.set_title(name + gap, fontsize=9)
    for axis in axes[len(first) :]:
        axis.set_visible(False)
    top = max(
        [float(v.max()) for _, v in curves.values()]
        + [r.evidence / comparison.rows for r in first.values() if isfinite(r.evidence)]
    )
    bottom = min(float(value[len(value) // 10]) for _, value in curves.values())
    axes[0].set_ylim(bottom - 0.05 * (top - bottom), top + 0.1 * (top - bottom))
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper right", ncols=4, fontsize=8)
    figure.suptitle(f"{comparison.model}: how tight is the bound?", fontsize=11, x=0.01, ha="left")
    figure.supxlabel("step", fontsize=9)
    figure.supylabel("nats per datum", fontsize=9)
    return figure


def _smooth(value: Tensor) -> tuple[Tensor, Tensor]:
    """The running mean, and the steps at the middle of its windows."""
    width = max(1, len(value) // 50)
    return torch.arange(len(value) - width + 1) + width // 2, value.unfold(0, width, 1).mean(-1)
