"""Draws of many quantities as one table with a name for each column."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from models import Model

from .bound import unwrap

__all__ = ["Scalars", "quantities", "scalars"]


class Scalars(NamedTuple):
    """Draws of D scalars."""

    names: tuple[str, ...]
    """``mu``, ``theta[1]``, counted from 1 as posteriordb does."""
    draws: Tensor
    """Shape (K, D), float64."""
    datum: tuple[int, ...]
    """Position of each scalar along the first dimension of its quantity; 0 for one without dimensions."""


def scalars(values: Mapping[str, Tensor]) -> Scalars:
    """The columns of draws of quantities, each of shape (K, *shape)."""
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


def quantities(model: Callable[..., Any], h: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What is to be known of draws of the latents: the model's `quantities` where it has them, else the latents."""
    own = unwrap(model)
    return own.quantities(h) if isinstance(own, Model) else dict(h)
