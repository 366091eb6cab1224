"""A fit between two blocks of steps, as stopping rules see it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from pyro import poutine
from pyro.infer import ELBO
from torch import Tensor

from ..engine import Problem
from ..engine.minibatches import Batch
from .checkpoint import Checkpoint
from .fisher import data_count, score_draws

__all__ = ["LiveRun"]

PAIRED_DRAWS = 32
"""Draws with common noise by which the losses at two λ are compared. A rule compares rarely, so they may cost many steps."""


class LiveRun:
    """One run of a plan, with the contract `stopping.Running`.

    λ holds all parameters, and the whole table of each `Local` guide even if a step learns only some of its rows.

    Args:
        problem: what the engine runs.
        batch: the data, or a minibatch that represents them.
    """

    def __init__(self, problem: Problem, batch: Batch) -> None:
        self.problem, self.batch = problem, batch
        self.steps = 0
        self._losses: list[Tensor] = []
        self._begin = time.perf_counter()
        self._data_count: int | None = None

    @property
    def rate(self) -> float:
        return float(self.problem.optimiser.param_groups[0]["lr"])

    @rate.setter
    def rate(self, value: float) -> None:
        before = self.rate
        for group in self.problem.optimiser.param_groups:
            group["lr"] = value if group["lr"] == before else group["lr"] * value / before

    def add(self, losses: Tensor, *, new: int) -> None:
        """Records the losses of a block of `new` steps, after those of earlier steps that were taken again."""
        if len(losses) > new:
            self._losses = [self.losses[: self.steps + new - len(losses)]]
        self._losses.append(losses)
        self.steps += new

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self._begin

    @property
    def losses(self) -> Tensor:
        if len(self._losses) != 1:
            self._losses = [torch.cat(self._losses) if self._losses else torch.empty(0, dtype=torch.float64)]
        return self._losses[0]

    @property
    def data_count(self) -> int:
        if self._data_count is None:
            self._data_count = data_count(self.problem.guide, self.batch)
        return self._data_count

    def checkpoint(self) -> Checkpoint:
        """The parameters, to go back to, also if steps have met new ones meanwhile."""
        return Checkpoint(self._leaves())

    def iterate(self) -> Tensor:
        return torch.cat([leaf.detach().reshape(-1).double() for leaf in self._leaves()])

    def move(self, point: Tensor) -> None:
        leaves = self._leaves()
        with torch.no_grad():
            for leaf, part in zip(leaves, point.split([leaf.numel() for leaf in leaves]), strict=True):
                leaf.copy_(part.reshape(leaf.shape))

    def scores(self) -> Tensor:
        return score_draws(self.problem.model, self.problem.guide, self.batch, self._leaves())

    def losses_at(self, points: list[Tensor]) -> Tensor:
        with self._restored():
            found = []
            for point in points:
                self.move(point)
                torch.manual_seed(self.steps)
                found.append([self._loss() for _ in range(PAIRED_DRAWS)])
        return torch.tensor(found, dtype=torch.float64)

    def _leaves(self) -> list[Tensor]:
        tables = self.problem.rows.leaves
        handed_out = {id(leaf) for leaf in tables.values()}
        return [*tables, *(p for p in self.problem.parameters if id(p) not in handed_out)]

    def _loss(self) -> float:
        model, guide, objective = self.problem.model, self.problem.guide, self.problem.objective
        if isinstance(objective, ELBO):
            found = objective.loss(model, guide, *self.batch.args, **self.batch.kwargs)
            return float(found[0] if isinstance(found, tuple) else found)
        return float(objective(model, guide, self.batch.args, self.batch.kwargs).value)

    @contextmanager
    def _restored(self) -> Iterator[None]:
        """Restores λ and the random state afterwards."""
        here = [leaf.detach().clone() for leaf in self._leaves()]
        try:
            with torch.random.fork_rng(), torch.no_grad(), poutine.block():
                yield
        finally:
            with torch.no_grad():
                for leaf, value in zip(self._leaves(), here, strict=True):
                    leaf.copy_(value)
