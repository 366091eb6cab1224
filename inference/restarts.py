"""Several starts, and the best of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .engine import Engine
from .nonfinite import NonFiniteLossError
from .rates import find_rate
from .running import LiveRun
from .starting import Start
from .starting.place import check_placeable, place

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
    rate: float | None,
) -> None:
    """Moves the guide to the start; of several, each followed for a few steps, to the end of the one with the lowest loss.

    Losses are compared with common noise. A start from which the loss does not stay finite is dropped.

    Args:
        start, restarts, guide, model, args: of the fit.
        trial: makes an engine at a rate, with an optimiser that has no memory.
        rate: of these steps; found at the first start if it is None.

    Raises:
        NonFiniteLossError: if every start ends so.
    """
    run = trial(0.01)[1]
    origin = run.iterate()
    ends: list[Tensor] = []
    failure: NonFiniteLossError | None = None
    for _ in range(restarts):
        run.move(origin)
        place(guide, start.draws(model, args), args)
        if restarts == 1:
            return
        try:
            rate = find_rate(trial) if rate is None else rate
            engine, run = trial(rate)
            engine.advance(STEPS)
        except NonFiniteLossError as error:
            failure = error
        else:
            ends.append(run.iterate())
    if failure is not None and not ends:
        raise failure
    losses = run.losses_at(ends).mean(1)
    run.move(ends[int(losses.where(losses.isfinite(), torch.inf).argmin())])
