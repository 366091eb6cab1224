"""What is done to model and guide before a fit's first step, and undone after its last."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pyro
import torch
from pyro import poutine
from torch import Tensor
from torch.optim import Optimizer

from ..engine.eager import adopt
from ..engine.local_rows import LocalRows
from ..engine.minibatches import Batch
from ..optimisers import JointStep, Solver
from ..programs.validation import check_pair

__all__ = ["check_descent", "check_method", "gradients_restored", "learned", "own_nan_check"]


def check_method(objective: Any, optimiser: Any, *, repeatable: bool) -> None:
    """Raises unless these are instances, and a solver has the same data in every iteration."""
    if isinstance(objective, type):
        raise TypeError(f"objective is the class {objective.__name__}; pass an instance, {objective.__name__}().")
    if isinstance(optimiser, type) and issubclass(optimiser, Solver):
        raise TypeError(f"optimiser is the class {optimiser.__name__}; pass an instance, {optimiser.__name__}().")
    if isinstance(optimiser, Solver) and not repeatable:
        raise ValueError(
            f"{type(optimiser).__name__} needs the same data in every iteration: leave batch_size=None and transform=None, or "
            "use torch's Adam."
        )


def check_descent(optimiser: Optimizer, rows: LocalRows) -> None:
    """Raises for an optimiser that minibatches or a noisy loss would lead astray."""
    if isinstance(optimiser, torch.optim.LBFGS):
        raise TypeError("LBFGS evaluates the loss several times a step, which a noisy loss does not allow: use Adam.")
    if isinstance(optimiser, JointStep) and rows.leaves:
        raise TypeError(
            f"{type(optimiser).__name__} takes one step size from the distance that all parameters have gone, but minibatches "
            "show it a few rows of a Local guide at a time: leave batch_size=None, or use torch's Adam."
        )


def learned(
    model: Callable[..., Any], guide: Callable[..., Any], batch: Batch, rows: LocalRows, *, enumerated: bool
) -> tuple[list[Tensor], tuple[set[str], set[str]]]:
    """The tensors to optimise: each once, the rows of a local table in place of the table. Checks the pair on the way."""
    with rows, poutine.trace(param_only=True) as used:
        names = check_pair(model, guide, batch.args, batch.kwargs, enumerated=enumerated)
    parameters: list[Tensor] = list(rows.leaves.values())
    adopt(used.trace, parameters, rows.leaves)
    if not parameters:
        raise ValueError("neither the model nor the guide has a parameter to learn, so there is nothing to fit.")
    return parameters, names


@contextmanager
def gradients_restored(parameters: list[Tensor]) -> Iterator[None]:
    """Starts without gradients and leaves those that were there before."""
    before = {id(parameter): parameter.grad for parameter in parameters}
    try:
        for parameter in parameters:
            parameter.grad = None
        yield
    finally:
        for parameter in parameters:
            parameter.grad = before.get(id(parameter))


@contextmanager
def own_nan_check() -> Iterator[None]:
    """Leaves NaN to `fit`, which stops at it and names the site: Pyro would raise without the step, or only warn."""
    with pyro.validation_enabled(False), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Encountered NaN", UserWarning)
        yield
