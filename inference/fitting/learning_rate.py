"""The learning rate of the first step: given, or found by short trials."""

from __future__ import annotations

import time
from math import inf, sqrt
from typing import NamedTuple

import torch

from ..engine.minibatches import Batch
from ..engine.nonfinite import NonFiniteLossError
from .plan import FitPlan

__all__ = ["DEFAULT_RATE", "RATES", "TRIAL_STEPS", "Rate", "choose_rate", "find_rate", "smaller_rate"]

DEFAULT_RATE = 0.01
"""Used with a schedule if none is given: Adam's steps are then about a tenth of the scale at which guides start."""
RATES = (0.3, 0.1, 0.03, 0.01, 0.003, 0.001)
"""Rates to try, about three apart: a rule halves the rate later, so a finer choice gains nothing."""
TRIAL_STEPS = 50
"""Steps of a trial: enough for a rate that is far too large to show it."""
COMPARED_LOSSES = 15
"""The last losses of a trial, which are compared between rates; the earlier ones are on the way there."""


class Rate(NamedTuple):
    """A learning rate for the first step."""

    value: float
    found: bool
    """Whether it was found by a short trial. Then it is replaced by a smaller one if it fails later."""


def choose_rate(plan: FitPlan, batch: Batch, lr: float | None, *, deadline: float = inf) -> Rate:
    """The given rate `lr`; else, if a rule sets the rate, the result of `find_rate`; else `DEFAULT_RATE`."""
    if lr is not None or not plan.sets_rate:
        return Rate(DEFAULT_RATE if lr is None else lr, found=False)
    rate = find_rate(plan, batch, deadline=deadline)
    return Rate(rate, found=rate in RATES)  # else the optimiser sets its own


def find_rate(plan: FitPlan, batch: Batch, *, deadline: float = inf) -> float:
    """The largest of `RATES` whose loss after `TRIAL_STEPS` steps is the lowest, to within two standard errors.

    All trials start from the same λ and the same random state, both of which are restored. Too large a rate costs little,
    since a rule lowers it later; too small a rate is slow to forget the start. If an optimiser ignores `lr` and sets a rate of
    its own, that rate is returned without a trial.

    Args:
        plan: an opened plan.
        batch: the minibatch that represents the data.
        deadline: reading of `time.perf_counter` after which no further rate is tried, if one has been.

    Raises:
        NonFiniteLossError: if no rate gives finite losses.

    Reference: the step-size search of Kucukelbir, Tran, Ranganath, Gelman & Blei, "Automatic differentiation variational
    inference" (2017), section 2.6, with other rates and another criterion.
    """
    found: dict[float, tuple[float, float]] = {}
    failure: NonFiniteLossError | None = None
    for rate in RATES:
        if found and time.perf_counter() > deadline:
            break
        engine, run = plan.trial(rate, batch)
        if run.rate != rate:
            return run.rate
        start, noise = run.checkpoint(), torch.get_rng_state()
        try:
            last = engine.advance(TRIAL_STEPS)[-COMPARED_LOSSES:]
            found[rate] = (float(last.mean()), float(last.std()) / sqrt(COMPARED_LOSSES))
        except NonFiniteLossError as error:
            failure = error
        start.restore()
        torch.set_rng_state(noise)
    if failure is not None and not found:
        raise failure
    lowest, error_of_lowest = min(found.values())
    return next(rate for rate in RATES if rate in found and found[rate][0] <= lowest + 2 * error_of_lowest)


def smaller_rate(rate: float) -> float | None:
    """The largest of `RATES` below this one; None if there is none."""
    return next((smaller for smaller in RATES if smaller < rate), None)
