"""The learning rate that a fit begins with, where nobody has given one."""

from __future__ import annotations

from collections.abc import Callable
from math import sqrt

import torch

from ..engine import Engine
from ..engine.nonfinite import NonFiniteLossError
from .run import LiveRun

__all__ = ["RATES", "STEPS", "find_rate", "smaller_rate"]

RATES = (0.3, 0.1, 0.03, 0.01, 0.003, 0.001)
STEPS = 50
JUDGED = 15
"""The last of the steps, whose losses are compared."""


def find_rate(begin: Callable[[float], tuple[Engine, LiveRun]]) -> float:
    """The largest rate whose losses after a few steps are the lowest, within two standard errors.

    Every rate starts from the same λ with the same noise; λ and the random state are left as they were. Too large a first rate
    costs little, since a rule lowers it; too small a one is slow to forget where it started. An optimiser that goes by a rate
    of its own, whatever it is given, keeps that: nothing is tried.

    Args:
        begin: makes an engine at that rate, with an optimiser that has no memory.

    Raises:
        NonFiniteLossError: if no rate gives finite losses.

    Reference: the idea, with other numbers, is the step-size search of Kucukelbir, Tran, Ranganath, Gelman & Blei, "Automatic
    differentiation variational inference" (2017), section 2.6.
    """
    found: dict[float, tuple[float, float]] = {}
    failure: NonFiniteLossError | None = None
    for rate in RATES:
        engine, run = begin(rate)
        if run.rate != rate:
            return run.rate
        start, noise = run.iterate(), torch.get_rng_state()
        try:
            last = engine.advance(STEPS)[-JUDGED:]
            found[rate] = (float(last.mean()), float(last.std()) / sqrt(JUDGED))
        except NonFiniteLossError as error:
            failure = error
        run.move(start)
        torch.set_rng_state(noise)
    if failure is not None and not found:
        raise failure
    lowest, noise_of_it = min(found.values())
    return next(rate for rate in RATES if rate in found and found[rate][0] <= lowest + 2 * noise_of_it)


def smaller_rate(rate: float) -> float | None:
    """The next rate to try after one that has failed later than its trial; None if there is none."""
    return next((smaller for smaller in RATES if smaller < rate), None)
