"""Blocks of data, so that memory does not grow with the number of data."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from guides import Guide, Local
from guides.latents import Latents

from ..programs.bound import unwrap
from .packed_guide import data_are_independent, is_cut_by_rows

__all__ = ["first_rows", "guide_blocks", "row_blocks", "with_table"]

MAX_ROWS = 100
"""Data in one block."""


def row_blocks(
    model: Callable[..., Any], latents: Latents, args: tuple[Any, ...]
) -> Iterator[tuple[Tensor | None, tuple[Any, ...]]]:
    """The index of each block's rows, and the arguments of the model for these rows alone.

    The index is None, and the block all the data, if they are few or if the model does not take a part of them.
    """
    few = latents.plate is None or latents.plate_sizes[latents.plate] <= MAX_ROWS
    if few or not is_cut_by_rows(model, latents, args, MAX_ROWS):
        yield None, args
    else:
        for rows in torch.arange(len(args[0]), device=args[0].device).split(MAX_ROWS):
            yield rows, tuple(value[rows] for value in args)


def guide_blocks(
    model: Callable[..., Any], guide: Callable[..., Any], args: tuple[Any, ...]
) -> Iterator[tuple[tuple[Any, ...], Callable[..., Any]]]:
    """Arguments of the model for each block of data, and a guide for this block. Call it inside `isolated`.

    The data are cut only if they are independent of one another in model and guide. The λ of a block are then looked up, or
    computed by the encoder, once for all draws.
    """
    own = unwrap(guide)
    if not (isinstance(own, Guide) and own.local and args and data_are_independent(model, guide, args)):
        yield args, guide
        return
    assert own.latents is not None
    for rows, block in row_blocks(model, own.latents, args):
        yield block, with_table(own, own.lambdas(block[0], rows), block)


def first_rows(
    model: Callable[..., Any], guide: Callable[..., Any], x: Tensor, rows: int
) -> tuple[Callable[..., Any], Tensor]:
    """A guide for the first `rows` rows of x, with those rows; the guide itself, with all of x, if the data cannot be cut."""
    own = unwrap(guide)
    if rows >= len(x) or not (isinstance(own, Guide) and own.local and data_are_independent(model, guide, (x,))):
        return guide, x
    assert own.latents is not None
    if not is_cut_by_rows(model, own.latents, (x,), rows):
        return guide, x
    with torch.no_grad():
        return with_table(own, own.lambdas(x)[:rows], (x[:rows],)), x[:rows]


def with_table(guide: Guide, lam: Tensor, block: tuple[Any, ...]) -> Local:
    """A `Local` guide of the same family for the rows of `block`, with λ = `lam`, shape (rows, family.size).

    Raises:
        ValueError: if the model has shared latents, whose λ it would not have.
    """
    if guide.shared is not None:
        raise ValueError("a table of λ_i says nothing about the latents that all data share: use the guide itself.")
    local = Local(guide.model, guide.family, plate=guide.plate)
    local.setup(*block)
    local.table.data = lam.detach().clone()
    return local
