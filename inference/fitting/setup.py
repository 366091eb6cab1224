"""Changes made to model and guide before the first step, and undone after the last."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import torch
from pyro import poutine
from torch import Tensor, nn
from torch.optim import Optimizer

from ..engine.eager import adopt
from ..engine.local_rows import LocalRows
from ..engine.minibatches import Batch
from ..optimisers import JointStep, Solver
from ..programs.bound import unwrap
from ..programs.isolation import without_validation
from ..programs.separation import make_learnable
from ..programs.validation import check_pair

__all__ = [
    "check_keywords",
    "check_method",
    "check_objective",
    "check_optimiser",
    "collect_parameters",
    "gradients_restored",
    "own_nan_check",
]


def check_method(objective: Any, optimiser: Any, *, repeatable: bool) -> None:
    """Raises if either is a class instead of an instance, or if a solver would not get the same data in each iteration."""
    if isinstance(objective, type):
        raise TypeError(f"objective is the class {objective.__name__}; pass an instance, {objective.__name__}().")
    if isinstance(optimiser, type) and issubclass(optimiser, Solver):
        raise TypeError(f"optimiser is the class {optimiser.__name__}; pass an instance, {optimiser.__name__}().")
    if isinstance(optimiser, Solver) and not repeatable:
        raise ValueError(
            f"{type(optimiser).__name__} needs the same data in every iteration: leave batch_size=None and transform=None, or "
            "use torch's Adam."
        )


def check_keywords(kwargs: Any, args: tuple[Any, ...], optimiser: Any, *, minibatches: bool) -> None:
    """Raises for keyword arguments of model and guide that a fit cannot hand on."""
    if not (isinstance(kwargs, Mapping) and all(isinstance(name, str) for name in kwargs)):
        raise TypeError(f"kwargs must be a dictionary of keyword arguments of model and guide, but is {kwargs!r}.")
    if kwargs and isinstance(optimiser, Solver):
        raise ValueError(f"{type(optimiser).__name__} takes no keyword arguments of the model: pass them in x, or use Adam.")
    if not minibatches:
        return
    if taken := {"index", "size"} & set(kwargs):
        raise ValueError(f"with batch_size, fit gives {sorted(taken)} to model and guide: leave them out of kwargs.")
    for name, value in kwargs.items():
        if isinstance(value, Tensor) and value.dim() and len(value) == len(args[0]):
            raise ValueError(f"{name!r} has a row for each datum, which batch_size does not cut in kwargs: pass it in x.")


def check_objective(objective: Any, args: tuple[Any, ...]) -> None:
    """Raises a TypeError for a function that takes neither the arguments of an objective nor those of a loss of Pyro."""
    if not inspect.isroutine(objective):
        return
    try:
        takes = inspect.signature(objective)
    except (TypeError, ValueError):
        raise TypeError(f"objective must be an Objective or an ELBO, but is {objective!r}, without named arguments.") from None
    for given in ((None, None, args, {}), (None, None, *args)):
        with suppress(TypeError):
            takes.bind(*given)
            return
    raise TypeError(f"objective must take model, guide, args and kwargs, but {objective.__name__} takes {takes}.")


def check_optimiser(optimiser: Optimizer, rows: LocalRows) -> None:
    """Raises a TypeError for an optimiser that fails on a noisy loss, or on minibatches of a `Local` guide."""
    if isinstance(optimiser, torch.optim.LBFGS):
        raise TypeError("LBFGS evaluates the loss several times a step, which a noisy loss does not allow: use Adam.")
    if isinstance(optimiser, JointStep) and rows.leaves:
        raise TypeError(
            f"{type(optimiser).__name__} takes one step size from the distance that all parameters have moved, but a "
            "minibatch moves only a few rows of a Local guide: leave batch_size=None, or use torch's Adam."
        )


def collect_parameters(
    model: Callable[..., Any], guide: Callable[..., Any], batch: Batch, rows: LocalRows, *, enumerated: bool
) -> tuple[list[Tensor], tuple[set[str], set[str]]]:
    """Runs the pair once, which checks it and makes its parameters, and collects the tensors to optimise.

    Args:
        model, guide: a Pyro pair.
        batch: the arguments of the call.
        rows: takes the tables of a `Local` guide on a minibatch.
        enumerated: whether latents that the model marks for enumeration may be missing from the guide.

    Returns:
        The tensors, each once, with the batch's rows of a local table in place of the table; and the names of the parameters
        of the model and of the guide.

    Raises:
        ValueError: if there is nothing to learn, or from `check_pair`.
    """
    for program in (model, guide):
        make_learnable(unwrap(program))
    with rows, poutine.trace(param_only=True) as used:
        names = check_pair(model, guide, batch.args, batch.kwargs, enumerated=enumerated, undrawn=True)
    parameters: list[Tensor] = list(rows.leaves.values())
    adopt(used.trace, parameters, rows.leaves)
    if not parameters:
        raise ValueError("neither the model nor the guide has a parameter to learn, so there is nothing to fit.")
    return parameters, names


@contextmanager
def gradients_restored(parameters: list[Tensor], *programs: Callable[..., Any]) -> Iterator[None]:
    """Starts without gradients, and afterwards restores those that the parameters had before.

    Args:
        parameters: the tensors to learn; a step may add some.
        programs: model and guide. If they are modules, the gradients of all their parameters are restored.
    """
    modules = [program for program in map(unwrap, programs) if isinstance(program, nn.Module)]
    tensors = [*parameters, *(p for module in modules for p in module.parameters())]
    before = {id(tensor): tensor.grad for tensor in tensors}
    try:
        for tensor in tensors:
            tensor.grad = None
        yield
    finally:
        for tensor in (*tensors, *parameters):
            tensor.grad = before.get(id(tensor))


@contextmanager
def own_nan_check() -> Iterator[None]:
    """Turns off Pyro's checks for NaN, which raise without naming the step, or only warn: the engine's own check does both."""
    with without_validation(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Encountered NaN", UserWarning)
        yield
