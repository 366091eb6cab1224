"""The contract of an engine."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from math import inf, isfinite
from typing import Any

import torch
from torch import Tensor
from torch.linalg import LinAlgError  # type: ignore[attr-defined]
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from .local_rows import LocalRows
from .minibatches import Batch, Batches
from .nonfinite import NonFiniteLossError, explain

__all__ = ["Engine", "Problem"]


@dataclass(frozen=True)
class Problem:
    """What an engine is to run."""

    model: Callable[..., Any]
    guide: Callable[..., Any]
    objective: Any
    batches: Batches
    rows: LocalRows
    parameters: list[Tensor]
    """The tensors to learn; a step that meets new ones adds them."""
    optimiser: Optimizer
    schedule: LRScheduler | None
    steps: int | None = None
    """How many there will be, if that is known."""


class Engine(ABC):
    """Takes the steps of a fit.

    Args:
        problem: what to run.

    Attributes:
        taken: number of steps so far.
    """

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.taken = 0

    def advance(self, steps: int) -> Tensor:
        """Takes `steps` steps and returns the loss before each, shape (steps,).

        Raises:
            NonFiniteLossError: at the first loss or gradient that is not finite; the parameters are as they were before
                that step.
        """
        return torch.tensor([self.take(next(self.problem.batches)) for _ in range(steps)], dtype=torch.float64)

    def take(self, batch: Batch) -> float:
        """One step of the optimiser on `batch`, and the loss before it."""
        problem = self.problem
        rng = torch.get_rng_state()
        try:
            loss = self.step(batch)
        except LinAlgError as error:
            self._forget_gradients()
            raise NonFiniteLossError(self.taken, None, f"a matrix could not be factorised ({error})") from error
        if not (isfinite(loss) and self._finite_gradients()):
            self._forget_gradients()
            raise explain(problem.model, problem.guide, batch, problem.rows, step=self.taken, loss=loss, rng=rng)
        group = problem.optimiser.param_groups[0]["params"]
        group.extend(problem.parameters[len(group) :])
        problem.rows.load(problem.optimiser, batch.epoch)
        problem.optimiser.step()
        problem.rows.store(problem.optimiser)
        problem.optimiser.zero_grad()
        if problem.schedule is not None:
            problem.schedule.step()
        self.taken += 1
        return loss

    @abstractmethod
    def step(self, batch: Batch) -> float:
        """The loss of `batch`; each parameter's ``grad`` is its gradient afterwards."""

    def _forget_gradients(self) -> None:
        """Else the next fit of these parameters, at another rate, would add its own to them, and fail too."""
        for parameter in self.problem.parameters:
            parameter.grad = None

    def _finite_gradients(self) -> bool:
        gradients = [p.grad for p in self.problem.parameters if p.grad is not None]
        return bool(torch.nn.utils.get_total_norm(gradients, inf).isfinite())
