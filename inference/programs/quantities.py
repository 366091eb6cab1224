"""Draws of several quantities as one table with named columns."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from models import Model

from .arguments import checked
from .bound import unwrap
from .validation import naming

__all__ = ["Scalars", "quantities", "scalars"]


class Scalars(NamedTuple):
    """Draws of D scalars."""

    names: tuple[str, ...]
    """``mu``, ``theta[1]``: entries are counted from 1, as in posteriordb."""
    draws: Tensor
    """Shape (K, D), float64."""
    datum: tuple[int, ...]
    """Position of each scalar along the first dimension of its quantity; 0 for a quantity of shape ()."""


@checked
def scalars(values: Mapping[str, Tensor]) -> Scalars:
    """The table of K draws of quantities, each of shape (K, *shape)."""
    if not values or any(value.dim() == 0 for value in values.values()):
        raise ValueError("values must hold at least one quantity, each of shape (K, *shape).")
    if len({len(value) for value in values.values()}) > 1:
        raise ValueError(f"values must hold K draws of each quantity, but hold {[len(value) for value in values.values()]}.")
    names: list[str] = []
    datum: list[int] = []
    columns = []
    for name, value in values.items():
        shape = tuple(value.shape[1:])
        for position in np.ndindex(shape):
            names.append(f"{name}[{','.join(str(i + 1) for i in position)}]" if shape else name)
            datum.append(position[0] if shape else 0)
        columns.append(value.detach().double().reshape(len(value), -1))
    return Scalars(tuple(names), torch.cat(columns, -1), tuple(datum))


@checked
def quantities(model: Callable[..., Any], h: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The quantities of interest at draws of the latents: the model's `quantities`, or a plain model's latents.

    They are computed draw by draw: those of a draw that is NaN are NaN.
    """
    own = unwrap(model)
    if not isinstance(own, Model):
        return dict(h)
    with naming("model's quantities", own, (dict(h),)):
        return own.quantities(h)
