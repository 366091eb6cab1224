"""Bars of the activity of latent units."""

from __future__ import annotations

from matplotlib.figure import Figure
from torch import Tensor

__all__ = ["active_unit_bars"]


def active_unit_bars(variance: Tensor, *, threshold: float) -> Figure:
    """The variances of the latents' posterior means, sorted, on a log scale, with the threshold of activity.

    Args:
        variance: variance of each latent's posterior mean over the data, shape (k,).
        threshold: a latent counts as active above it.
    """
    variance = variance.sort(descending=True).values.cpu()
    figure = Figure(figsize=(5.0, 3.0), layout="constrained")
    axis = figure.subplots()
    colours = ["C0" if v > threshold else "C7" for v in variance]
    axis.bar(range(len(variance)), variance.clamp(min=1e-6).tolist(), color=colours)
    axis.axhline(threshold, color="k", linestyle=":", linewidth=1)
    axis.set_yscale("log")
    axis.set_xlabel("latent, sorted")
    axis.set_ylabel("variance of E[h | x]")
    axis.set_title(f"{int((variance > threshold).sum())} of {len(variance)} latents are active", fontsize=10)
    return figure
