"""Steps on a minibatch's rows of a `Local` table, at a cost independent of the table's length."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor

__all__ = ["LocalRows", "RowsPlace"]


class RowsPlace(NamedTuple):
    """Copies of local tables and of the optimiser's state of their rows."""

    epoch: int
    tables: dict[Tensor, Tensor]
    handed_out: dict[Tensor, Tensor]
    state: dict[Tensor, dict[str, Tensor]]
    scalars: dict[Tensor, dict[str, Any]]


class LocalRows(Messenger):
    """Hands out the batch's rows of each local table as a leaf, and keeps the optimiser's state of every row.

    Inside the context, `guides.rows(table, index)` is a leaf tensor with the values of table[index]. `load` gives the
    optimiser the state of these rows before its step, and `store` writes values and state back. So each row is optimised as
    if it were alone, except for the minibatch scale of its gradient: under epoch shuffling it is visited once an epoch, and
    scalar state such as Adam's step count advances once an epoch, not once a batch. Any torch optimiser with elementwise
    state will do.
    """

    def __init__(self) -> None:
        super().__init__()
        self.leaves: dict[Tensor, torch.nn.Parameter] = {}
        self._index: dict[Tensor, Tensor] = {}
        self._state: dict[Tensor, dict[str, Tensor]] = {}
        self._scalars: dict[Tensor, dict[str, Any]] = {}
        self._epoch = 0

    def _pyro_rows(self, msg: Any) -> None:
        msg["value"] = self.hand_out(*msg["args"])
        msg["done"] = True

    def hand_out(self, table: Tensor, index: Tensor) -> torch.nn.Parameter:
        """The leaf that represents table[index] until `store`."""
        leaf = self.leaves.setdefault(table, torch.nn.Parameter(table.new_empty(0)))
        if self._index.get(table) is not index:
            leaf.grad = None
            leaf.data = table.detach()[index]
            self._index[table] = index
        return leaf

    def load(self, optimiser: torch.optim.Optimizer, epoch: int) -> None:
        """Gives `optimiser` the state of the rows handed out last. `epoch` is the number of finished epochs."""
        if epoch != self._epoch:
            self._epoch = epoch
            self._scalars = {table: self._read_scalars(optimiser, leaf) for table, leaf in self.leaves.items()}
        for table, leaf in self.leaves.items():
            optimiser.state.pop(leaf, None)
            if epoch:
                index = self._index[table]
                gathered = {key: full[index] for key, full in self._state.get(table, {}).items()}
                scalars = {key: _copy(value) for key, value in self._scalars[table].items()}
                optimiser.state[leaf] = {**scalars, **gathered}

    def store(self, optimiser: torch.optim.Optimizer) -> None:
        """Writes the rows and their state back after the optimiser's step.

        Raises:
            TypeError: if the optimiser's state cannot be split by rows; nothing is written then.
        """
        for leaf in self.leaves.values():
            for key, value in optimiser.state[leaf].items():
                if _is_rowwise(value) and value.shape != leaf.shape:
                    raise TypeError(
                        f"{type(optimiser).__name__} keeps {key!r} of shape {tuple(value.shape)} for rows of shape "
                        f"{tuple(leaf.shape)}, which cannot be split by rows: fit this Local guide with batch_size=None, or "
                        "use an elementwise optimiser such as Adam."
                    )
        for table, leaf in self.leaves.items():
            index = self._index.pop(table)
            table.data[index] = leaf.data
            full = self._state.setdefault(table, {})
            for key, value in optimiser.state[leaf].items():
                if _is_rowwise(value):
                    if key not in full:
                        full[key] = value.new_zeros(table.shape)
                    full[key][index] = value

    @property
    def place(self) -> RowsPlace:
        """Copies of the tables and of the state of their rows. It can be set."""
        tables = {table: table.detach().clone() for table in self.leaves}
        return RowsPlace(self._epoch, tables, dict(self._index), _copies(self._state), _copies(self._scalars))

    @place.setter
    def place(self, place: RowsPlace) -> None:
        for table, values in place.tables.items():
            table.data.copy_(values)
        self._epoch, self._index = place.epoch, dict(place.handed_out)
        self._state, self._scalars = _copies(place.state), _copies(place.scalars)

    def _read_scalars(self, optimiser: torch.optim.Optimizer, leaf: Tensor) -> dict[str, Any]:
        return {key: _copy(value) for key, value in optimiser.state[leaf].items() if not _is_rowwise(value)}


def _is_rowwise(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dim() > 0


def _copy(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else value


def _copies(states: Mapping[Tensor, Mapping[str, Any]]) -> dict[Tensor, dict[str, Any]]:
    return {table: {key: _copy(value) for key, value in state.items()} for table, state in states.items()}
