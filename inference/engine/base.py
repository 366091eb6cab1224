"""The contract of an engine."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..batches import Batch
from ..row_optimiser import RowOptimiser

__all__ = ["Engine", "Problem"]


@dataclass(frozen=True)
class Problem:
    """What an engine is to run: everything of a fit but its optimiser."""

    model: Callable[..., Any]
    guide: Callable[..., Any]
    objective: Any
    rows: RowOptimiser
    parameters: list[Tensor]
    """The tensors to learn; a step that meets new ones adds them."""


class Engine(ABC):
    """Evaluates the loss of one batch and leaves its gradient in the parameters.

    Args:
        problem: what to run.
    """

    def __init__(self, problem: Problem) -> None:
        self.problem = problem

    @abstractmethod
    def step(self, batch: Batch) -> float:
        """The loss of `batch`; each parameter's ``grad`` is its gradient afterwards."""
