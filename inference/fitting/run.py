"""A fit between two blocks of steps: what the rules that end it see and may change."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from pyro import poutine
from pyro.infer import ELBO
from torch import Tensor
from torch.optim import Optimizer

from ..engine.local_rows import LocalRows
from ..engine.minibatches import Batch
from ..objectives import Objective
from .fisher import data_count, score_draws

__all__ = ["LiveRun"]

PAIRED = 32
"""Draws by which the losses at two λ are compared."""


class LiveRun:
    """Keeps the contract `stopping.Running` for a fit. λ is every parameter, and the tables of which a step learns rows.

    Args:
        model, guide, objective: of the fit.
        batch: the data, or the minibatch that stands for them.
        rows: holds the tables.
        parameters: what is learned; a step may add to it.
        optimiser: whose rate it is.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        guide: Callable[..., Any],
        objective: Objective | ELBO,
        *,
        batch: Batch,
        rows: LocalRows,
        parameters: list[Tensor],
        optimiser: Optimizer,
    ) -> None:
        self.model, self.guide, self.objective, self.batch = model, guide, objective, batch
        self._optimiser = optimiser
        self._tables, self._parameters = rows, parameters
        self._losses: list[Tensor] = []
        self.steps = 0
        self._begin = time.perf_counter()
        self._rows: int | None = None

    @property
    def rate(self) -> float:
        return float(self._optimiser.param_groups[0]["lr"])

    @rate.setter
    def rate(self, value: float) -> None:
        for group in self._optimiser.param_groups:
            group["lr"] = value

    def add(self, losses: Tensor) -> None:
        """Takes down the losses of a block of steps."""
        self._losses.append(losses)
        self.steps += len(losses)

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self._begin

    @property
    def losses(self) -> Tensor:
        if len(self._losses) != 1:
            self._losses = [torch.cat(self._losses) if self._losses else torch.empty(0, dtype=torch.float64)]
        return self._losses[0]

    @property
    def rows(self) -> int:
        if self._rows is None:
            self._rows = data_count(self.guide, self.batch)
        return self._rows

    def iterate(self) -> Tensor:
        return torch.cat([leaf.detach().reshape(-1).double() for leaf in self._leaves()])

    def move(self, point: Tensor) -> None:
        leaves = self._leaves()
        with torch.no_grad():
            for leaf, part in zip(leaves, point.split([leaf.numel() for leaf in leaves]), strict=True):
                leaf.copy_(part.reshape(leaf.shape))

    def scores(self) -> Tensor:
        return score_draws(self.model, self.guide, self.batch, self._leaves())

    def losses_at(self, points: list[Tensor]) -> Tensor:
        with self._kept():
            found = []
            for point in points:
                self.move(point)
                torch.manual_seed(self.steps)
                found.append([self._loss() for _ in range(PAIRED)])
        return torch.tensor(found, dtype=torch.float64)

    def _leaves(self) -> list[Tensor]:
        handed_out = {id(leaf) for leaf in self._tables.leaves.values()}
        return [*self._tables.leaves, *(p for p in self._parameters if id(p) not in handed_out)]

    def _loss(self) -> float:
        if isinstance(self.objective, ELBO):
            return float(self.objective.loss(self.model, self.guide, *self.batch.args, **self.batch.kwargs))
        return float(self.objective(self.model, self.guide, self.batch.args, self.batch.kwargs).value)

    @contextmanager
    def _kept(self) -> Iterator[None]:
        here = [leaf.detach().clone() for leaf in self._leaves()]
        try:
            with torch.random.fork_rng(), torch.no_grad(), poutine.block():
                yield
        finally:
            with torch.no_grad():
                for leaf, value in zip(self._leaves(), here, strict=True):
                    leaf.copy_(value)
