"""Minibatches by epoch shuffling."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..programs.validation import naming

__all__ = ["Batch", "Batches"]


class Batch(NamedTuple):
    """The arguments of one call of model and guide, and the number of epochs finished before it."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    epoch: int = 0


class Batches(Iterator[Batch]):
    """Endless stream of batches of `batch_size` rows, each row once in an epoch; of all the data if `batch_size` is None.

    The last batch of an epoch may be smaller; it is scaled by its own number of rows, so that every batch is unbiased. The
    permutation of an epoch is drawn when its first batch is asked for.

    Args:
        args: the data; row i of every tensor belongs to datum i.
        batch_size: rows in a batch.
        transform: applied to the rows of x, the first argument, of each batch.
        kwargs: keyword arguments of each call, the same for all batches.
    """

    def __init__(
        self,
        args: tuple[Any, ...],
        batch_size: int | None,
        transform: Callable[[Tensor], Tensor] | None = None,
        kwargs: dict[str, Any] | None = None,
    ) -> None:
        self.args = args
        self.kwargs = dict(kwargs or {})
        self.batch_size = batch_size
        self.transform = transform
        self.epoch = -1
        self._left: list[Tensor] = []
        self._peeked: list[Batch] = []

    def __next__(self) -> Batch:
        if self._peeked:
            return self._peeked.pop()
        if self.batch_size is None:
            return self.of(None)
        return self.of(self.indices(1)[0])

    def peek(self) -> Batch:
        """The next batch, without moving on."""
        batch = next(self)
        self._peeked.append(batch)
        return batch

    @property
    def place(self) -> tuple[int, list[Tensor], list[Batch]]:
        """The position in the stream: epoch, remaining batches and what was peeked at. It can be set."""
        return self.epoch, list(self._left), list(self._peeked)

    @place.setter
    def place(self, place: tuple[int, list[Tensor], list[Batch]]) -> None:
        self.epoch, self._left, self._peeked = place[0], list(place[1]), list(place[2])

    def indices(self, limit: int) -> list[Tensor]:
        """The row numbers of the next batches of this epoch: at most `limit` batches, all of the same size."""
        assert self.batch_size is not None
        if not self._left:
            self.epoch += 1
            self._left = list(torch.randperm(len(self.args[0]), device=self.args[0].device).split(self.batch_size))
        same = [index for index in self._left[:limit] if len(index) == len(self._left[0])]
        self._left = self._left[len(same) :]
        return same

    def of(self, index: Tensor | None) -> Batch:
        """The batch of the rows `index`, or of all rows."""
        if not self.args:
            return Batch((), {})
        if index is None:
            return Batch((*map(self._transformed, self.args[:1]), *self.args[1:]), self.kwargs)
        x, *others = (value[index] for value in self.args)
        return Batch((self._transformed(x), *others), {**self.kwargs, "index": index, "size": len(self.args[0])}, self.epoch)

    def _transformed(self, x: Any) -> Any:
        if self.transform is None:
            return x
        with naming("transform", self.transform, (x,)):
            found = self.transform(x)
        if not isinstance(found, Tensor) or found.shape[:1] != x.shape[:1]:
            got = f"a tensor of shape {tuple(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
            raise ValueError(f"transform must return one row for each of the {len(x)} rows of x, but returned {got}.")
        return found
