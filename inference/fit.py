"""Stochastic variational inference for any Pyro model and guide."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.infer import ELBO, Trace_ELBO
from pyro.params.param_store import StateDict
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler
from tqdm import tqdm

from .batches import Batch, Batches
from .checks import arguments, check_count, check_data, check_minibatch, check_pair, check_rate
from .engine import Eager, Engine, Problem
from .engine.eager import adopt
from .isolation import isolated, scoped
from .nonfinite import NonFiniteLossError
from .objectives import Objective, TraceELBO
from .optimisers import JointStep, Solver, Target
from .row_optimiser import RowOptimiser

__all__ = ["Fit", "NonFiniteLossError", "cosine", "fit"]


@dataclass(frozen=True)
class Fit:
    """A finished fit."""

    model: Callable[..., Any]
    """The model; a plain function is bound to its fitted `pyro.param` values."""
    guide: Callable[..., Any]
    """The fitted guide, likewise."""
    nelbo: Tensor
    """The loss at each step: an estimate of −ELBO of the whole data, in nats; lower is better. Shape (steps,)."""
    steps: int
    seconds: float
    seed: int
    params: StateDict = field(repr=False)
    """The param store's state at the end."""


def cosine(optimiser: Optimizer, steps: int) -> LRScheduler:
    """A learning rate that falls to zero along half a cosine, so that the last iterate is not noise."""
    return CosineAnnealingLR(optimiser, steps)


def fit(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    x: Tensor | tuple[Any, ...],
    *,
    steps: int,
    lr: float = 0.01,
    objective: Objective | ELBO = TraceELBO(),  # noqa: B008 - frozen
    optimiser: Callable[..., Optimizer] | Solver = torch.optim.Adam,
    schedule: Callable[[Optimizer, int], LRScheduler] | None = cosine,
    batch_size: int | None = None,
    engine: type[Engine] = Eager,
    transform: Callable[[Tensor], Tensor] | None = None,
    seed: int = 0,
    progress: bool = False,
) -> Fit:
    """Maximises the ELBO over the parameters of `guide`, and over those of `model` if it has any.

    Model and guide are used as they are: models and guides of this suite, any `PyroModule`, Pyro's autoguides, or plain
    functions with `pyro.param` and `pyro.module`. Modules are trained in place. Nothing global is changed: the fit has its
    own random state and param store, and after it, an error or Ctrl-C all is as before.

    Args:
        model: a Pyro model, called as model(x), or model(*x) if `x` is a tuple.
        guide: a Pyro guide with the same arguments.
        x: the data.
        steps: number of optimiser steps.
        lr: learning rate at the first step.
        objective: one of `inference.objectives`, or an ELBO object of Pyro's; by default the estimator of Pyro's
            `Trace_ELBO` with one draw.
        optimiser: makes a torch optimiser from parameters and `lr`; or a `Solver` of `inference.optimisers`, which needs no
            `lr`, `schedule` or `objective` and stops by itself after at most `steps` iterations.
        schedule: makes a learning-rate schedule from the optimiser and `steps`; None for a constant rate.
        batch_size: rows in a minibatch, drawn by epoch shuffling; all the data at once by default. Model and guide must
            take `index` and `size`.
        engine: how to run a step; `engine.Graph` takes the same trajectory as `engine.Eager` in less time.
        transform: applied anew to the rows x of each step, such as `models.images.binarise` for dynamic binarisation.
        seed: fixes initial values that the guide draws on its first call, the batches and the noise.
        progress: whether to show a progress bar.

    Raises:
        TypeError, ValueError: for bad input, before any work starts.
        NonFiniteLossError: at the first step whose loss or gradient is not finite; names the site.

    Reference: Kucukelbir, Tran, Ranganath, Gelman & Blei, "Automatic differentiation variational inference" (2017).
    """
    args = arguments(x)
    check_count(steps=steps)
    check_rate(lr)
    if transform is None:
        check_data(model, args)
    if batch_size is not None:
        check_minibatch(model, guide, args, batch_size)
    _check_method(objective, optimiser, repeatable=batch_size is None and transform is None)
    if isinstance(optimiser, Solver):
        return _solved(model, guide, args, optimiser, steps=steps, seed=seed)
    losses = torch.empty(steps, dtype=torch.float64)
    begin = time.perf_counter()
    with isolated(seed) as store, torch.enable_grad(), ExitStack() as stack:
        stream = Batches(args, batch_size, transform)
        first = stream.peek()
        if transform is not None:
            check_data(model, first.args)
        rows = RowOptimiser()
        parameters, names = _parameters(
            model, guide, first, rows, enumerated=not isinstance(objective, Trace_ELBO | TraceELBO)
        )
        if not parameters:
            raise ValueError("neither the model nor the guide has a parameter to learn, so there is nothing to fit.")
        stack.enter_context(_gradients_restored(parameters))
        descent = optimiser(parameters, lr=lr)
        if isinstance(descent, torch.optim.LBFGS):
            raise TypeError("LBFGS evaluates the loss several times a step, which a noisy loss does not allow: use Adam.")
        if isinstance(descent, JointStep) and rows.leaves:
            raise TypeError(
                f"{type(descent).__name__} takes one step size from the distance that all parameters have gone, but "
                "minibatches show it a few rows of a Local guide at a time: leave batch_size=None, or use torch's Adam."
            )
        decay = None if schedule is None else schedule(descent, steps)
        run = engine(Problem(model, guide, objective, stream, rows, parameters, descent, decay))
        stack.enter_context(_own_nan_check())
        bar = stack.enter_context(tqdm(total=steps, disable=not progress, unit="step"))
        for block in _blocks(steps):
            losses[block] = run.advance(block.stop - block.start)
            bar.update(block.stop - block.start)
    return Fit(
        model=scoped(model, store, names[0]),
        guide=scoped(guide, store, names[1]),
        nelbo=losses,
        steps=steps,
        seconds=time.perf_counter() - begin,
        seed=seed,
        params=store,
    )


def _blocks(steps: int) -> Iterator[slice]:
    """Blocks of steps that begin with a single one and grow until they take a tenth of a second."""
    start, size = 0, 1
    while start < steps:
        begin = time.perf_counter()
        yield slice(start, min(start + size, steps))
        start += size
        if time.perf_counter() - begin < 0.1:
            size *= 2


def _check_method(objective: Any, optimiser: Any, *, repeatable: bool) -> None:
    if isinstance(objective, type):
        raise TypeError(f"objective is the class {objective.__name__}; pass an instance, {objective.__name__}().")
    if isinstance(optimiser, type) and issubclass(optimiser, Solver):
        raise TypeError(f"optimiser is the class {optimiser.__name__}; pass an instance, {optimiser.__name__}().")
    if isinstance(optimiser, Solver) and not repeatable:
        raise ValueError(
            f"{type(optimiser).__name__} needs the same data in every iteration: leave batch_size=None and transform=None, or "
            "use torch's Adam."
        )


def _parameters(
    model: Callable[..., Any], guide: Callable[..., Any], batch: Batch, rows: RowOptimiser, *, enumerated: bool
) -> tuple[list[Tensor], tuple[set[str], set[str]]]:
    """The tensors to optimise: each once, the rows of a local table in place of the table. Checks the pair on the way."""
    with rows, poutine.trace(param_only=True) as used:
        names = check_pair(model, guide, batch.args, batch.kwargs, enumerated=enumerated)
    parameters: list[Tensor] = list(rows.leaves.values())
    adopt(used.trace, parameters, rows.leaves)
    return parameters, names


@contextmanager
def _gradients_restored(parameters: list[Tensor]) -> Iterator[None]:
    """Starts without gradients and leaves those that were there before."""
    before = {id(parameter): parameter.grad for parameter in parameters}
    try:
        for parameter in parameters:
            parameter.grad = None
        yield
    finally:
        for parameter in parameters:
            parameter.grad = before.get(id(parameter))


def _solved(
    model: Callable[..., Any], guide: Callable[..., Any], args: tuple[Any, ...], solver: Solver, *, steps: int, seed: int
) -> Fit:
    """What `fit` does with an optimiser that runs by itself."""
    begin = time.perf_counter()
    with isolated(seed) as store, torch.enable_grad():
        parameters, names = _parameters(model, guide, Batch(args, {}), RowOptimiser(), enumerated=False)
        if not parameters:
            raise ValueError("neither the model nor the guide has a parameter to learn, so there is nothing to fit.")
        with _gradients_restored(parameters), _own_nan_check():
            losses = torch.tensor(solver.solve(Target(model, guide, args, parameters), steps=steps), dtype=torch.float64)
        if not losses[-1].isfinite():
            raise NonFiniteLossError(len(losses) - 1, None, f"{type(solver).__name__} diverged, its loss is not finite")
    return Fit(
        model=scoped(model, store, names[0]),
        guide=scoped(guide, store, names[1]),
        nelbo=losses,
        steps=len(losses),
        seconds=time.perf_counter() - begin,
        seed=seed,
        params=store,
    )


@contextmanager
def _own_nan_check() -> Iterator[None]:
    """Leaves NaN to `fit`, which stops at it and names the site: Pyro would raise without the step, or only warn."""
    with pyro.validation_enabled(False), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Encountered NaN", UserWarning)
        yield
