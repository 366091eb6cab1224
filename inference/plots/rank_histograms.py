"""Rank histograms and ECDFs of simulation-based calibration."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from scipy.stats import binom
from torch import Tensor

__all__ = ["rank_histograms"]

MAX_COLUMNS = 6


def rank_histograms(
    histogram: Tensor,
    deviation: Tensor,
    width: Tensor,
    *,
    draws: int,
    simulations: int,
    names: Sequence[str],
    p_values: Sequence[float],
) -> Figure:
    """One column for each of the first six scalars: the histogram of its ranks above, their ECDF below.

    The band of the histogram is the central 95 % interval of a bin's binomial distribution. The uniform ECDF is subtracted
    from the ECDF; its band contains the whole curve of a calibrated scalar with probability 0.95.

    Args:
        histogram: ranks in each bin, shape (D, bins).
        deviation: ECDF minus the uniform ECDF, shape (D, draws + 1).
        width: half the width of the band, shape (draws + 1,).
        draws: draws among which each true value is ranked, so that ranks run from 0 to `draws`.
        simulations: number of ranks of each scalar.
        names, p_values: names and p-values of the D scalars.
    """
    counts = histogram.numpy()
    shown, bins = min(MAX_COLUMNS, len(counts)), counts.shape[1]
    figure = Figure(figsize=(2.6 * shown, 4.6), layout="constrained")
    axes = figure.subplots(2, shown, squeeze=False, sharey="row")
    low, high = binom.interval(0.95, simulations, 1 / bins)
    grid = np.arange(1, draws + 2) / (draws + 1)
    for column in range(shown):
        above, below = axes[:, column]
        above.axhspan(low, high, color="k", alpha=0.1, linewidth=0)
        above.bar(range(bins), counts[column], width=1.0, color="C0")
        above.set_title(f"{names[column]}\np = {p_values[column]:.2g}", fontsize=9)
        below.fill_between(grid, -width.numpy(), width.numpy(), color="k", alpha=0.1, linewidth=0)
        below.step(grid, deviation[column].numpy(), where="post", color="C0")
        below.set_xlabel("rank / draws")
    axes[0, 0].set_ylabel("simulations in each bin")
    axes[1, 0].set_ylabel("ECDF − uniform")
    return figure
