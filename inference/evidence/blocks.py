"""Blocks of data, so that memory does not grow with the number of data."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from guides import Guide, Local

from ..programs.bound import unwrap

__all__ = ["guide_blocks", "has_rows", "row_blocks", "with_table"]

MAX_ROWS = 100
"""Data in one block."""


def has_rows(args: tuple[Any, ...]) -> bool:
    """Whether every argument is a tensor with one row for each datum, so that the data can be cut into blocks."""
    return all(isinstance(value, Tensor) and value.dim() > 0 and len(value) == len(args[0]) for value in args)


def row_blocks(args: tuple[Any, ...]) -> Iterator[tuple[Tensor, tuple[Any, ...]]]:
    """The index of each block's rows, and the arguments of the model for these rows alone."""
    for rows in torch.arange(len(args[0]), device=args[0].device).split(MAX_ROWS):
        yield rows, tuple(value[rows] for value in args)


def guide_blocks(guide: Callable[..., Any], args: tuple[Any, ...]) -> Iterator[tuple[tuple[Any, ...], Callable[..., Any]]]:
    """Arguments of the model for each block of data, and a guide for this block; all the data unless λ is local.

    The λ of a block are looked up, or computed by the encoder, once for all draws.
    """
    own = unwrap(guide)
    if not (isinstance(own, Guide) and own.local and has_rows(args)):
        yield args, guide
        return
    for rows, block in row_blocks(args):
        yield block, with_table(own, own.lambdas(block[0], rows), block)


def with_table(guide: Guide, lam: Tensor, block: tuple[Any, ...]) -> Local:
    """A `Local` guide of the same family for the rows of `block`, with λ = `lam`, shape (rows, family.size)."""
    local = Local(guide.model, guide.family, plate=guide.plate)
    local.setup(*block)
    local.table.data = lam.detach().clone()
    return local
