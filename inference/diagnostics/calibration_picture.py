"""The two pictures of simulation-based calibration: rank histograms, and ECDFs with their bands."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure
from scipy.stats import binom

if TYPE_CHECKING:
    from .calibration import Calibration

__all__ = ["calibration_picture"]

MOST = 6


def calibration_picture(calibration: Calibration) -> Figure:
    """A column for each scalar, of the first six.

    Above the histogram of its ranks, with the central 95 % of a bin's binomial; below the ECDF of its ranks minus the
    uniform's, with the band that holds the whole curve in 95 % of cases.
    """
    histogram = calibration.histogram().numpy()
    deviation, width = (value.numpy() for value in calibration.ecdf_band())
    shown = min(MOST, len(histogram))
    figure = Figure(figsize=(2.6 * shown, 4.6), layout="constrained")
    axes = figure.subplots(2, shown, squeeze=False, sharey="row")
    bins = histogram.shape[1]
    low, high = binom.interval(0.95, len(calibration.ranks), 1 / bins)
    grid = np.arange(1, calibration.draws + 2) / (calibration.draws + 1)
    for column in range(shown):
        above, below = axes[:, column]
        above.axhspan(low, high, color="k", alpha=0.1, linewidth=0)
        above.bar(range(bins), histogram[column], width=1.0, color="C0")
        above.set_title(f"{calibration.names[column]}\np = {float(calibration.p_values[column]):.2g}", fontsize=9)
        below.fill_between(grid, -width, width, color="k", alpha=0.1, linewidth=0)
        below.step(grid, deviation[column], where="post", color="C0")
        below.set_xlabel("rank / draws")
    axes[0, 0].set_ylabel("simulations in each bin")
    axes[1, 0].set_ylabel("ECDF − uniform")
    return figure
