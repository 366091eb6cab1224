"""One λ_i for each datum, looked up by index."""

from __future__ import annotations

from typing import Any

import torch
from pyro.poutine.runtime import effectful
from torch import Tensor

from .base import Guide

__all__ = ["Local", "rows"]


@effectful(type="rows")  # type: ignore[untyped-decorator]
def rows(table: Tensor, index: Tensor) -> Tensor:
    """table[index], as a Pyro effect: a fit can replace the result by a leaf, so that a step costs O(batch), not O(N)."""
    return table[index]


class Local(Guide):
    """∏_i q_{λ_i}(h_i), with a free λ_i for each of the N data: no encoder, so no amortization gap.

    Args:
        model: a Pyro program with latents inside the data plate.
        family: the shape of each q_{λ_i}.
        plate: name of the model's data plate.
        shared: the family over the latents outside the data plate; by default `FullRank`.
    """

    local = True
    table: Tensor
    """λ, one row for each datum, shape (N, family.size)."""

    def make_parameters(self, x: Tensor) -> None:
        assert self.latents is not None
        self.table = torch.nn.Parameter(self.family.start().repeat(self.latents.plate_sizes[self.plate], 1))

    def forward(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Samples h ~ q at the model's sites. Takes the model's arguments."""
        self.setup(*args, **kwargs)
        size = self._call(args, kwargs)[2]
        if self.holds_data and size not in (None, len(self.table)):
            raise ValueError(
                f"this Local guide has a λ_i for each of {len(self.table)} data, but the data have {size}: build a guide for "
                "these data."
            )
        return super().forward(*args, **kwargs)

    def lambdas(self, x: Tensor, index: Tensor | None = None) -> Tensor:
        table = self.table
        if not self.holds_data:
            return table
        if index is not None:
            return rows(table, index)
        if len(x) != len(table):
            raise ValueError(
                f"this Local guide has a λ_i for each of {len(table)} data, but x has {len(x)} rows: pass their index, "
                "or build a guide for these data."
            )
        return table
