"""Minibatches by epoch shuffling."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

__all__ = ["Batch", "batches", "transformed"]


class Batch(NamedTuple):
    """The arguments of one call of model and guide, and how many epochs were finished before it."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    epoch: int = 0


def batches(args: tuple[Any, ...], batch_size: int | None) -> Iterator[Batch]:
    """Endless batches of `batch_size` rows, every row once in each epoch; all the data at once if it is None.

    The last batch of an epoch may be smaller; its rows are scaled by their own number, so every batch is unbiased.
    """
    if batch_size is None:
        while True:
            yield Batch(args, {})
    rows = len(args[0])
    epoch = 0
    while True:
        for index in torch.randperm(rows, device=args[0].device).split(batch_size):
            yield Batch(tuple(value[index] for value in args), {"index": index, "size": rows}, epoch)
        epoch += 1


def transformed(stream: Iterator[Batch], transform: Callable[[Tensor], Tensor]) -> Iterator[Batch]:
    """The same batches with `transform` applied to the rows of x, the first argument, of each."""
    for batch in stream:
        yield batch._replace(args=(transform(batch.args[0]), *batch.args[1:]))
