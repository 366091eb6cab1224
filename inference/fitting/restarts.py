"""Several starts, and the best of them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, suppress
from typing import Any

import torch
from torch import Tensor, nn

from ..engine import Engine
from ..engine.nonfinite import NonFiniteLossError
from ..programs.isolation import Scope
from ..starting import Start
from ..starting.place import check_placeable, place
from .divergence import DivergedError
from .learning_rate import find_rate
from .run import LiveRun
from .simultaneous import JointRuns

__all__ = ["begin_at", "check_start"]

STEPS = 200


def check_start(start: Any, guide: Callable[..., Any]) -> None:
    """Raises unless `start` is a start, and one that this guide can be moved to."""
    if isinstance(start, type):
        raise TypeError(f"start is the class {start.__name__}; pass an instance, {start.__name__}().")
    if not isinstance(start, Start):
        raise TypeError(f"start must be a Start such as FromInit(), but is {start!r}; see inference.starting.")
    check_placeable(guide)


def begin_at(
    start: Start,
    restarts: int,
    *,
    guide: Callable[..., Any],
    model: Callable[..., Any],
    args: tuple[Any, ...],
    trial: Callable[[float], tuple[Engine, LiveRun]],
    together: Callable[[Sequence[tuple[Any, Any]], Sequence[Scope], float, int], AbstractContextManager[JointRuns]],
    rate: float | None,
) -> None:
    """Moves the guide to the start; of several, each followed for a few steps, to the end of the one with the lowest loss.

    Losses are compared with common noise. A start from which the loss does not stay finite is dropped. The steps from all
    starts are taken at once, unless one is dropped, or something is learned that is not held by model or guide as modules.

    Args:
        start, restarts, guide, model, args: of the fit.
        trial: makes an engine at a rate, with an optimiser that has no memory.
        together: runs several pairs of model and guide, from their scopes, the rate and the number of steps.
        rate: of these steps; found at the first start if it is None.

    Raises:
        NonFiniteLossError: if every start ends so.
    """
    run = trial(0.01)[1]
    origin = run.iterate()
    modules = nn.ModuleList(part for part in (model, guide) if isinstance(part, nn.Module))
    alike = sum(p.numel() for p in modules.parameters() if p.requires_grad) == len(origin)
    pairs = [copy.deepcopy((model, guide)) for _ in range(restarts)] if restarts > 1 and alike else []
    place(guide, start.draw(model, args), args)
    if restarts == 1:
        return
    rate = find_rate(trial) if rate is None else rate
    ends: list[Tensor] = []
    if pairs:
        scopes = [Scope(int(torch.randint(2**31, ()))) for _ in pairs]
        for pair, scope in zip(pairs, scopes, strict=True):
            with scope.entered():
                place(pair[1], start.draw(pair[0], args), args)
        with suppress(NonFiniteLossError, DivergedError), together(pairs, scopes, rate, STEPS) as runs:
            runs.advance(STEPS)
            ends = [each.iterate() for _, each, _ in runs.each]
    if not ends:
        ends = _followed(start, restarts, run, origin, guide=guide, model=model, args=args, trial=lambda: trial(rate))
    losses = run.losses_at(ends).mean(1)
    run.move(ends[int(losses.where(losses.isfinite(), torch.inf).argmin())])


def _followed(
    start: Start,
    restarts: int,
    run: LiveRun,
    origin: Tensor,
    *,
    guide: Callable[..., Any],
    model: Callable[..., Any],
    args: tuple[Any, ...],
    trial: Callable[[], tuple[Engine, LiveRun]],
) -> list[Tensor]:
    """Where starts end, one after another, the present one first."""
    ends: list[Tensor] = []
    failure: NonFiniteLossError | None = None
    for k in range(restarts):
        if k > 0:
            run.move(origin)
            place(guide, start.draw(model, args), args)
        try:
            engine, run = trial()
            engine.advance(STEPS)
        except NonFiniteLossError as error:
            failure = error
        else:
            ends.append(run.iterate())
    if failure is not None and not ends:
        raise failure
    return ends
