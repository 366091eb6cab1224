"""Refuses numbers that are not finite, and says where they come from."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["require_density", "require_finite"]


def require_finite(value: Tensor, what: str, *, cause: str = "") -> Tensor:
    """Returns `value` if all its numbers are finite.

    Args:
        value: one number for each datum, rows of numbers for each datum, or a single number.
        what: names the quantity in the error.
        cause: why it can be infinite, a sentence of the error.

    Raises:
        ValueError: that names the first datum with a number that is not finite, and the usual causes.
    """
    wrong = ~value.isfinite()
    if not bool(wrong.any()):
        return value
    number = float(value[wrong].flatten()[0])
    of = ""
    if value.dim():
        rows = wrong.reshape(len(value), -1).any(-1)
        of = f" of datum {int(rows.nonzero()[0])} ({int(rows.sum())} such of {len(value)})"
    why = cause or (
        "the model gives x, or a draw of q, a density of zero or infinity"
        if number in (torch.inf, -torch.inf)
        else "the density of the model or of q is not a number at a draw of q"
    )
    raise ValueError(
        f"{what}{of} is {number}: {why}. Bring x to the scale of the model, use float64, or fit q closer to the posterior."
    )


def require_density(q: Any, owner: str) -> None:
    """Raises a ValueError if a coordinate of q is a point mass, which has no density."""
    draws = q.sample((4,))
    if bool((draws == draws[:1]).all(0).any()):
        raise ValueError(f"{owner}: q is a point mass, without a density, so its ELBO is −inf; use another family.")
