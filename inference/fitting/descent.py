"""Runs a plan step by step until a stopping rule ends it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from torch import Tensor
from tqdm import tqdm

from ..engine import Engine
from ..engine.nonfinite import NonFiniteLossError
from ..stopping import Rule, Stop
from .blocks import Blocks
from .divergence import DivergedError, DivergenceMonitor
from .learning_rate import Rate, smaller_rate
from .plan import FitPlan, Workspace
from .run import LiveRun

__all__ = ["descend"]


def descend(plan: FitPlan, workspace: Workspace, rate: Rate, *, progress: bool) -> tuple[Tensor, Stop]:
    """Runs the plan until a rule ends it. Returns the loss of each step, and why it ended.

    If a rate found by trial fails later in the fit, λ returns to its start and the next smaller rate is used.

    Raises:
        NonFiniteLossError, DivergedError: if the rate was given, or no smaller one is left.
    """
    engine, run = plan.begin(rate.value, workspace)
    start = run.checkpoint()
    with tqdm(total=plan.steps, disable=not progress, unit="step") as bar:
        while True:
            smaller = partial(_smaller, rate, run)
            try:
                stop = _watched(engine, run, plan.rules, bar, smaller)
            except (DivergedError, NonFiniteLossError):
                if (value := smaller()) is None:
                    raise
                start.restore()
                engine, run = plan.begin(value, plan.workspace(workspace.batch))
                bar.reset()
            else:
                return run.losses, stop


def _smaller(rate: Rate, run: LiveRun) -> float | None:
    """The rate to use if this run fails; None if the rate was given."""
    return smaller_rate(run.rate) if rate.found else None


def _watched(engine: Engine, run: LiveRun, rules: tuple[Rule, ...], bar: Any, smaller: Callable[[], float | None]) -> Stop:
    """Takes steps in blocks, each up to the next step at which a rule or the monitor is due, until a rule ends the fit."""
    watches = [rule.begin(run) for rule in rules]
    divergence = DivergenceMonitor(run, smaller=smaller)
    blocks, stop = Blocks(), None
    while stop is None:
        due = min(divergence.due, *(watch.due for watch in watches))
        with blocks.next(due - run.steps) as block:
            run.add(engine.advance(block, confirm=run.steps + block == due), new=block)
            bar.update(block)
        if run.steps == divergence.due:
            divergence.look(run)
        for watch in watches:
            if run.steps == watch.due and (stop := watch.look(run)) is not None:
                break
    divergence.look(run)
    known = [closing for watch in watches if (closing := watch.close(run)) is not None]
    return replace(stop, **known[0]._asdict()) if known else stop
