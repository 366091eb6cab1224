"""The fit that an engine is given."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from pyro.util import get_rng_state, set_rng_state
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from ..programs.isolation import Scope
from .graphs.optimiser_step import read_state, write_state
from .local_rows import LocalRows
from .minibatches import Batches

__all__ = ["Member", "Problem"]


@dataclass(frozen=True)
class Problem:
    """Programs, data, objective and optimiser of a fit."""

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
    """The number of steps, if known."""


@dataclass(frozen=True)
class Member:
    """One of the fits that share a loop."""

    scope: Scope | None
    """The fit's own random state and param store; None for the global ones."""
    problem: Problem

    def entered(self) -> AbstractContextManager[Any]:
        """Makes the fit's random state and param store the global ones."""
        return nullcontext() if self.scope is None else self.scope.entered()

    @property
    def random_state(self) -> dict[str, Any]:
        """States of the fit's generators: torch's, NumPy's and Python's."""
        return get_rng_state() if self.scope is None else self.scope.rng

    def set_random_state(self, state: dict[str, Any]) -> None:
        """Sets the states of the fit's generators."""
        if self.scope is None:
            set_rng_state(state)
        else:
            self.scope.rng = state

    @contextmanager
    def drawing(self) -> Iterator[None]:
        """Makes torch's generator the fit's own. Cheaper than `entered`."""
        if self.scope is None:
            yield
            return
        with torch.random.fork_rng(devices=[]):
            torch.set_rng_state(self.scope.rng["torch"])
            yield
            self.scope.rng = {**self.scope.rng, "torch": torch.get_rng_state()}

    def values(self) -> list[Tensor]:
        """Parameters and the optimiser's state, without gradient; not copied, but for counts of steps."""
        parameters = self.problem.parameters
        return [*(p.detach() for p in parameters), *read_state(self.problem.optimiser, parameters)]

    def write(self, values: Sequence[Tensor]) -> None:
        """Sets parameters and the optimiser's state, in the order of `values()`."""
        parameters = self.problem.parameters
        with torch.no_grad():
            for parameter, value in zip(parameters, values, strict=False):
                parameter.copy_(value)
            write_state(self.problem.optimiser, parameters, values[len(parameters) :])
