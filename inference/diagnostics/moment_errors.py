"""Errors of means and standard deviations in units of the reference's standard deviation."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..programs.arguments import checked

__all__ = ["MomentErrors", "by_name", "moment_errors"]


class MomentErrors(NamedTuple):
    """One error for each scalar, shape (D,)."""

    mean: Tensor
    """|mean − reference mean| / reference sd."""
    sd: Tensor
    """|sd / reference sd − 1|."""


@checked
def moment_errors(mean: Tensor, sd: Tensor, reference_mean: Tensor, reference_sd: Tensor) -> MomentErrors:
    """Compares moments with the truth; all of shape (D,).

    Raises:
        ValueError: if the shapes differ, or a reference standard deviation is not positive.

    Reference: Giordano, Ingram & Broderick, "Black box variational inference with a deterministic objective" (2024).
    """
    shapes = {tuple(v.shape) for v in (mean, sd, reference_mean, reference_sd)}
    if len(shapes) != 1:
        raise ValueError(f"moments and reference must have one shape, but have {sorted(shapes)}.")
    if not bool((reference_sd > 0).all()):
        raise ValueError("every reference standard deviation must be positive.")
    return MomentErrors(((mean - reference_mean) / reference_sd).abs(), (sd / reference_sd - 1).abs())


@checked
def by_name(names: tuple[str, ...], values: dict[str, float]) -> Tensor:
    """Looks up the values of the named scalars; shape (len(names),), float64.

    Raises:
        ValueError: if a name is missing.
    """
    if missing := [name for name in names if name not in values]:
        raise ValueError(f"the reference lacks {missing[0]!r}: it has {sorted(values)[:10]} …")
    return torch.tensor([values[name] for name in names], dtype=torch.float64)
