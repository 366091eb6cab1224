"""A grid of images."""

from __future__ import annotations

from matplotlib.figure import Figure
from torch import Tensor

__all__ = ["image_grid"]


def image_grid(images: Tensor, *, title: str) -> Figure:
    """Images side by side, without axes.

    Args:
        images: shape (lines, columns, height, width, channels) with 1 or 3 channels, values between 0 and 1.
        title: title of the figure.
    """
    lines, columns, height, width, channels = images.shape
    canvas = images.permute(0, 2, 1, 3, 4).reshape(lines * height, columns * width, channels).clamp(0, 1)
    figure = Figure(figsize=(max(3.0, 0.6 * columns), max(1.0, 0.6 * lines * height / width) + 0.3), layout="constrained")
    axis = figure.subplots()
    axis.imshow(canvas.expand(*canvas.shape[:2], 3).numpy(), interpolation="nearest")
    axis.set_axis_off()
    axis.set_title(title, fontsize=9)
    return figure
