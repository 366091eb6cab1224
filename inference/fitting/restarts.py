"""The start of a fit: one, or the best of several."""

from __future__ import annotations

import copy
from contextlib import suppress
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ..engine.minibatches import Batch
from ..engine.nonfinite import NonFiniteLossError
from ..optimisers import Solver
from ..programs.isolation import Scope
from ..programs.validation import check_count
from ..starting import FromInit, Start
from ..starting.place import check_placeable, place
from .divergence import DivergedError
from .learning_rate import DEFAULT_RATE, find_rate
from .plan import FitPlan
from .run import LiveRun
from .simultaneous import simultaneous_runs

__all__ = ["begin_at", "checked_start"]

TRIAL_STEPS = 200
"""Steps for which each start is followed before losses are compared. The loss at a start says little about where it leads."""


def checked_start(plan: FitPlan, start: Any, restarts: Any) -> Start | None:
    """The start of a fit: by default a draw of the prior if there are several starts, and None if there is one.

    Raises:
        TypeError, ValueError: for bad input, and for a start to which this guide cannot be moved.
    """
    check_count(restarts=restarts)
    if restarts > 1 and isinstance(plan.optimiser, Solver):
        raise ValueError(f"{type(plan.optimiser).__name__} is not restarted: leave restarts=1, or use torch's Adam.")
    if start is None:
        if restarts == 1:
            return None
        start = FromInit()
    if isinstance(start, type):
        raise TypeError(f"start is the class {start.__name__}; pass an instance, {start.__name__}().")
    if not isinstance(start, Start):
        raise TypeError(f"start must be a Start such as FromInit(), but is {start!r}; see inference.starting.")
    check_placeable(plan.guide)
    return start


def begin_at(plan: FitPlan, batch: Batch, start: Start | None, restarts: int, lr: float | None) -> None:
    """Moves the guide to its start. Of several starts, moves it to where the best of them is after `TRIAL_STEPS` steps.

    The best is the one with the lowest loss, with common noise. A start from which the loss does not stay finite is dropped.
    All starts take their steps simultaneously; one after another if one of them fails, or if some parameters are not held by
    model or guide as modules.

    Args:
        plan: an opened plan.
        batch: the minibatch that represents the data.
        start: makes draws of the latents; None leaves the guide as it is.
        restarts: number of starts.
        lr: learning rate of these steps; if None, `find_rate` finds it at the first start.

    Raises:
        NonFiniteLossError: if no start has a finite loss.
    """
    if start is None:
        return
    if isinstance(plan.optimiser, Solver):
        _move(plan, start)
        return
    _, run = plan.trial(DEFAULT_RATE, batch)  # refuses an unsuitable optimiser before the start makes its draws
    origin = run.iterate()
    copies = _copies(plan, restarts, len(origin)) if restarts > 1 else []
    _move(plan, start)
    if restarts == 1:
        return
    rate = find_rate(plan, batch) if lr is None else lr
    ends = _ends_of_copies(copies, start, rate) if copies else []
    if not ends:
        ends = _ends_in_turn(plan, batch, start, restarts, rate=rate, run=run, origin=origin)
    losses = run.losses_at(ends).mean(1)
    run.move(ends[int(losses.where(losses.isfinite(), torch.inf).argmin())])


def _move(plan: FitPlan, start: Start) -> None:
    place(plan.guide, start.draw(plan.model, plan.args), plan.args)


def _copies(plan: FitPlan, restarts: int, size: int) -> list[FitPlan]:
    """Plans for copies of the pair; none if its modules hold fewer than the `size` numbers to learn."""
    modules = nn.ModuleList(part for part in (plan.model, plan.guide) if isinstance(part, nn.Module))
    if sum(p.numel() for p in modules.parameters() if p.requires_grad) != size:
        return []
    pairs = [copy.deepcopy((plan.model, plan.guide)) for _ in range(restarts)]
    return [replace(plan, model=model, guide=guide, schedule=None, steps=TRIAL_STEPS) for model, guide in pairs]


def _ends_of_copies(copies: list[FitPlan], start: Start, rate: float) -> list[Tensor]:
    """λ after the steps of all copies; none if one of them fails."""
    scopes = [Scope(int(torch.randint(2**31, ()))) for _ in copies]
    for plan, scope in zip(copies, scopes, strict=True):
        with scope.entered():
            _move(plan, start)
    with suppress(NonFiniteLossError, DivergedError), simultaneous_runs(copies, scopes, rate) as runs:
        runs.advance(TRIAL_STEPS)
        return [member.run.iterate() for member in runs.members]
    return []


def _ends_in_turn(
    plan: FitPlan, batch: Batch, start: Start, restarts: int, *, rate: float, run: LiveRun, origin: Tensor
) -> list[Tensor]:
    """λ after the steps of each start that does not fail. The guide is at the first start; the others begin at `origin`."""
    ends: list[Tensor] = []
    failure: NonFiniteLossError | None = None
    for k in range(restarts):
        if k > 0:
            run.move(origin)
            _move(plan, start)
        try:
            engine, run = plan.trial(rate, batch)
            engine.advance(TRIAL_STEPS)
        except NonFiniteLossError as error:
            failure = error
        else:
            ends.append(run.iterate())
    if failure is not None and not ends:
        raise failure
    return ends
