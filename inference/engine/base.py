"""The contract of an engine."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from math import inf, isfinite
from typing import ClassVar

import torch
from torch import Tensor
from torch.linalg import LinAlgError  # type: ignore[attr-defined]
from torch.optim import Optimizer

from .minibatches import Batch
from .nonfinite import NonFiniteLossError, explain
from .problem import Problem
from .strategy import Strategy

__all__ = ["Engine", "StepwiseEngine", "join"]


class Engine(ABC):
    """Takes the steps of a fit.

    Args:
        problem: the fit.

    Attributes:
        strategy: how several fits by this engine run in one loop; None if they cannot.
        taken: number of steps so far.
    """

    strategy: ClassVar[type[Strategy] | None] = None

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.taken = 0

    @abstractmethod
    def advance(self, steps: int, *, confirm: bool = False) -> Tensor:
        """Takes `steps` steps.

        Args:
            steps: how many.
            confirm: whether the fit is looked at afterwards: then the last steps are compared with Pyro's.

        Returns:
            The losses of the last steps, one for each of the new ones. If a comparison with Pyro fails, the steps since the
            last one that held are taken again by Pyro, and their losses come before those of the new steps.

        Raises:
            NonFiniteLossError: at the first loss or gradient that is not finite; the parameters are as they were before
                that step.
        """


def join(optimiser: Optimizer, parameters: Sequence[Tensor]) -> None:
    """Gives the optimiser the parameters that it does not have yet: with settings of their own, if it says which."""
    known = {id(p) for group in optimiser.param_groups for p in group["params"]}
    for parameter in parameters:
        if id(parameter) in known:
            continue
        if hasattr(optimiser, "settings_of"):
            optimiser.add_param_group({"params": [parameter], **optimiser.settings_of(parameter)})
        else:
            optimiser.param_groups[0]["params"].append(parameter)


class StepwiseEngine(Engine):
    """Computes loss and gradients step by step, and leaves the update to the torch optimiser."""

    def advance(self, steps: int, *, confirm: bool = False) -> Tensor:
        return torch.tensor([self._take(next(self.problem.batches)) for _ in range(steps)], dtype=torch.float64)

    @abstractmethod
    def step(self, batch: Batch) -> float:
        """Returns the loss of `batch` and leaves each parameter's gradient in its ``grad``."""

    def _take(self, batch: Batch) -> float:
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
        join(problem.optimiser, problem.parameters)
        problem.rows.load(problem.optimiser, batch.epoch)
        problem.optimiser.step()
        problem.rows.store(problem.optimiser)
        problem.optimiser.zero_grad()
        if problem.schedule is not None:
            problem.schedule.step()
        self.taken += 1
        return loss

    def _forget_gradients(self) -> None:
        """Prevents that a later fit of the same parameters adds its gradients to these and fails too."""
        for parameter in self.problem.parameters:
            parameter.grad = None

    def _finite_gradients(self) -> bool:
        gradients = [p.grad for p in self.problem.parameters if p.grad is not None and p.grad.numel()]
        return bool(torch.nn.utils.get_total_norm(gradients, inf).isfinite())
