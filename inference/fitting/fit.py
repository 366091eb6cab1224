"""Stochastic variational inference for any Pyro model and guide."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from pyro.infer import ELBO, Trace_ELBO
from pyro.params.param_store import StateDict
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler
from tqdm import tqdm

from ..engine import Auto, Eager, Engine, Problem
from ..engine.local_rows import LocalRows
from ..engine.minibatches import Batch, Batches
from ..engine.nonfinite import NonFiniteLossError
from ..objectives import Objective, TraceELBO
from ..optimisers import Solver, Target
from ..programs.bound import bind
from ..programs.isolation import isolated
from ..programs.validation import as_args, check_count, check_data, check_minibatch, check_rate
from ..starting import FromInit, Start
from ..starting.place import place
from ..stopping import Converged, MaxSteps, Rule, Stop
from .default_objective import lowest_variance_objective
from .divergence import DivergedError, DivergenceMonitor
from .learning_rate import RATES, find_rate, smaller_rate
from .restarts import begin_at, check_start
from .run import LiveRun
from .setup import check_descent, check_method, gradients_restored, learned, own_nan_check
from .simultaneous import joint_runs

__all__ = ["DivergedError", "Fit", "NonFiniteLossError", "cosine", "fit"]


SOLVED = 1000
"""Iterations that a solver may take if nobody says."""


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
    stop: Stop
    """Which rule ended it, why, and how far from the best λ it is thought to be."""
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
    steps: int | None = None,
    lr: float | None = None,
    stop: Rule | Sequence[Rule] | None = None,
    start: Start | None = None,
    restarts: int = 1,
    objective: Objective | ELBO | None = None,
    optimiser: Callable[..., Optimizer] | Solver = torch.optim.Adam,
    schedule: Callable[[Optimizer, int], LRScheduler] | None = cosine,
    batch_size: int | None = None,
    engine: type[Engine] = Auto,
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
        steps: number of optimiser steps, at most if there is a `stop` too. Without both the fit ends when it has converged, by
            ``Converged()``.
        lr: learning rate at the first step; by default 0.01, but under a rule that sets the rate itself, as `Converged` does,
            the largest that works best in a short trial.
        stop: one or several rules of `inference.stopping`; the first that says so ends the fit. `Fit.stop` tells which.
        start: where the guide starts from, one of `inference.starting`; where it is by default. Whatever makes draws of the
            latents can be one.
        restarts: tries so many starts, each for a few steps, and goes on from the one with the lowest loss. By default they
            are draws of the prior.
        objective: one of `inference.objectives`, or an ELBO object of Pyro's; by default the estimator of Pyro's
            `Trace_ELBO` with one draw, but under a rule that sets the rate itself the one with the lowest variance.
        optimiser: makes a torch optimiser from parameters and `lr`; or a `Solver` of `inference.optimisers`, which needs no
            `lr`, `schedule` or `objective` and stops by itself after at most `steps` iterations.
        schedule: makes a learning-rate schedule from the optimiser and `steps`; None for a constant rate. The default is not
            used without `steps`, or under a rule that sets the rate itself.
        batch_size: rows in a minibatch, drawn by epoch shuffling; all the data at once by default. Model and guide must
            take `index` and `size`.
        engine: how to run the steps: `inference.engine` has several, which take the same trajectory to rounding. By default
            Pyro begins, captured and compiled code takes over; `engine.Eager` is Pyro throughout, the same to the last bit.
        transform: applied anew to the rows x of each step, such as `models.images.binarise` for dynamic binarisation.
        seed: fixes initial values that the guide draws on its first call, the batches and the noise.
        progress: whether to show a progress bar.

    Raises:
        TypeError, ValueError: for bad input, before any work starts.
        NonFiniteLossError: at the first step whose loss or gradient is not finite; names the site.
        DivergedError: if the ELBO falls far below its start, or q shrinks to a point.

    Reference: Kucukelbir, Tran, Ranganath, Gelman & Blei, "Automatic differentiation variational inference" (2017).
    """
    args = as_args(x)
    rules = _rules(steps, stop)
    free = any(rule.sets_rate for rule in rules)
    check_count(restarts=restarts)
    if lr is not None:
        check_rate(lr)
    if transform is None:
        check_data(model, args)
    if batch_size is not None:
        check_minibatch(model, guide, args, batch_size)
    check_method(objective, optimiser, repeatable=batch_size is None and transform is None)
    start = FromInit() if start is None and restarts > 1 else start
    if start is not None:
        check_start(start, guide)
    if isinstance(optimiser, Solver):
        _check_solver(optimiser, stop, restarts)
        return _solved(model, guide, args, optimiser, start, steps=SOLVED if steps is None else steps, seed=seed)
    if schedule not in (None, cosine) and (free or steps is None):
        raise ValueError(
            "a schedule is made for a known number of steps and sets the rate: give steps, and no Converged rule."
        )
    begin = time.perf_counter()
    with isolated(seed) as store, torch.enable_grad(), ExitStack() as stack:
        stream = Batches(args, batch_size, transform)
        first = stream.peek()
        if transform is not None:
            check_data(model, first.args)
        rows = LocalRows()
        enumerated = objective is not None and not isinstance(objective, Trace_ELBO | TraceELBO)
        parameters, names = learned(model, guide, first, rows, enumerated=enumerated)
        stack.enter_context(gradients_restored(parameters))
        if objective is None:
            objective = lowest_variance_objective(guide, first) if free else TraceELBO()
        stack.enter_context(own_nan_check())

        def assemble(
            rate: float, kind: type[Engine], stream: Batches, rows: LocalRows, parameters: list[Tensor]
        ) -> tuple[Engine, LiveRun]:
            descent = optimiser(parameters, lr=rate)
            check_descent(descent, rows)
            decay = None if schedule is None or free or steps is None else schedule(descent, steps)
            engine = kind(Problem(model, guide, objective, stream, rows, parameters, descent, decay, steps))
            return engine, LiveRun(model, guide, objective, batch=first, rows=rows, parameters=parameters, optimiser=descent)

        def attempt(rate: float, kind: type[Engine]) -> tuple[Engine, LiveRun]:
            own = LocalRows()
            again = Batches(args, batch_size, transform)  # a table's rows have no optimiser state in the first epoch only
            return assemble(rate, kind, again, own, learned(model, guide, first, own, enumerated=enumerated)[0])

        together = partial(
            joint_runs,
            args=args,
            objective=objective,
            optimiser=optimiser,
            schedule=None,
            batch_size=batch_size,
            transform=transform,
            engine=engine,
        )
        if start is not None:
            begin_at(
                start,
                restarts,
                guide=guide,
                model=model,
                args=args,
                trial=partial(attempt, kind=Eager),
                together=together,
                rate=lr,
            )
        found = find_rate(partial(attempt, kind=Eager)) if free and lr is None else None
        retry = partial(attempt, kind=engine) if found in RATES else None  # else the optimiser goes by its own
        bar = stack.enter_context(tqdm(total=steps, disable=not progress, unit="step"))
        run, ended = _carried_on(*assemble(lr or found or 0.01, engine, stream, rows, parameters), rules, bar, retry)
    return Fit(
        model=bind(model, store, names[0]),
        guide=bind(guide, store, names[1]),
        nelbo=run.losses,
        steps=run.steps,
        seconds=time.perf_counter() - begin,
        seed=seed,
        stop=ended,
        params=store,
    )


def _rules(steps: int | None, stop: Rule | Sequence[Rule] | None) -> tuple[Rule, ...]:
    rules = () if stop is None else tuple(stop) if isinstance(stop, Sequence) else (stop,)
    for rule in rules:
        if not isinstance(rule, Rule):
            hint = f"pass an instance, {rule.__name__}(...)" if isinstance(rule, type) else "see inference.stopping"
            raise TypeError(f"stop must be a rule such as Converged(), or several, but holds {rule!r}; {hint}.")
    if steps is not None:
        check_count(steps=steps)
        return (*rules, MaxSteps(steps))
    return rules or (Converged(),)


def _carried_on(
    machine: Engine,
    run: LiveRun,
    rules: tuple[Rule, ...],
    bar: Any,
    retry: Callable[[float], tuple[Engine, LiveRun]] | None,
) -> tuple[LiveRun, Stop]:
    """Runs until a rule says that it is enough. A rate that was found but fails after its trial gives way to a smaller one."""
    begun = run.iterate()

    def smaller() -> float | None:
        return smaller_rate(run.rate) if retry is not None and len(run.iterate()) == len(begun) else None

    while True:
        try:
            return run, _watched(machine, run, rules, bar, trial=lambda: smaller() is not None)
        except (DivergedError, NonFiniteLossError):
            if retry is None or (rate := smaller()) is None:
                raise
            run.move(begun)
            machine, run = retry(rate)
            bar.reset()


def _watched(machine: Engine, run: LiveRun, rules: tuple[Rule, ...], bar: Any, *, trial: Callable[[], bool]) -> Stop:
    """Takes steps in blocks, which grow until they take a tenth of a second, until a rule says that it is enough."""
    watches = [rule.begin(run) for rule in rules]
    divergence = DivergenceMonitor(run, trial=trial)
    size, ended = 1, None
    while ended is None:
        begin = time.perf_counter()
        block = min(size, divergence.due - run.steps, *(watch.due - run.steps for watch in watches))
        run.add(machine.advance(block))
        bar.update(block)
        if block == size and time.perf_counter() - begin < 0.1:
            size *= 2
        if run.steps == divergence.due:
            divergence.look(run)
        for watch in watches:
            if run.steps == watch.due and (ended := watch.look(run)) is not None:
                break
    divergence.look(run)
    known = [estimate for watch in watches if (estimate := watch.close(run)) is not None]
    return replace(ended, **known[0]._asdict()) if known else ended


def _check_solver(solver: Solver, stop: Any, restarts: int) -> None:
    if stop is not None:
        raise ValueError(f"{type(solver).__name__} stops by itself: leave stop=None, or use torch's Adam.")
    if restarts > 1:
        raise ValueError(f"{type(solver).__name__} is not restarted: leave restarts=1, or use torch's Adam.")


def _solved(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    args: tuple[Any, ...],
    solver: Solver,
    start: Start | None,
    *,
    steps: int,
    seed: int,
) -> Fit:
    """What `fit` does with an optimiser that runs by itself."""
    begin = time.perf_counter()
    with isolated(seed) as store, torch.enable_grad():
        parameters, names = learned(model, guide, Batch(args, {}), LocalRows(), enumerated=False)
        with gradients_restored(parameters), own_nan_check():
            if start is not None:
                place(guide, start.draw(model, args), args)
            solution = solver.solve(Target(model, guide, args, parameters), steps=steps)
        losses = torch.tensor(solution.losses, dtype=torch.float64)
        if not losses[-1].isfinite():
            raise NonFiniteLossError(len(losses) - 1, None, f"{type(solver).__name__} diverged, its loss is not finite")
    return Fit(
        model=bind(model, store, names[0]),
        guide=bind(guide, store, names[1]),
        nelbo=losses,
        steps=len(losses),
        seconds=time.perf_counter() - begin,
        seed=seed,
        stop=Stop(
            solver,
            f"{type(solver).__name__} {solution.reason}",
            converged=solution.converged,
            distance=solution.distance,
        ),
        params=store,
    )
