"""Runs of several plans that take their steps simultaneously."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch

from ..engine import SimultaneousFits
from ..programs.isolation import Scope, exclusive
from ..programs.support import check_support
from .blocks import Blocks
from .divergence import DivergenceMonitor
from .plan import FitPlan, Workspace
from .run import LiveRun
from .setup import gradients_restored, own_nan_check

__all__ = ["OneOfMany", "SimultaneousRuns", "simultaneous_runs"]


class OneOfMany(NamedTuple):
    """One of several runs."""

    scope: Scope
    workspace: Workspace
    run: LiveRun
    divergence: DivergenceMonitor


class SimultaneousRuns:
    """Several runs in progress.

    Args:
        engine: takes the steps of all.
        members: the runs.
    """

    def __init__(self, engine: SimultaneousFits, members: Sequence[OneOfMany]) -> None:
        self.members = members
        self._engine = engine

    def advance(self, steps: int, bar: Any = None) -> None:
        """Takes steps until there are `steps` in all, and monitors divergence as `fit` does.

        Raises:
            NonFiniteLossError, DivergedError: from the first run that fails.
        """
        engine, blocks = self._engine, Blocks()
        while engine.taken < steps:
            due = min(self.members[0].divergence.due, steps)
            with blocks.next(due - engine.taken) as block:
                losses = engine.advance(block, confirm=engine.taken + block == due)
                if bar is not None:
                    bar.update(block)
                for member, own in zip(self.members, losses.unbind(1), strict=True):
                    member.run.add(own, new=block)
            if engine.taken == due:
                for member in self.members:
                    with member.scope.entered():
                        member.divergence.look(member.run)


@contextmanager
def simultaneous_runs(plans: Sequence[FitPlan], scopes: Sequence[Scope], rate: float) -> Iterator[SimultaneousRuns]:
    """A run of each plan in its scope, before the first step.

    Args:
        plans: the same but for model and guide, each with its objective chosen.
        scopes: one for each plan, new or entered before.
        rate: learning rate of the first step.
    """
    with exclusive(), own_nan_check(), torch.enable_grad(), ExitStack() as stack:
        problems, members = [], []
        for plan, scope in zip(plans, scopes, strict=True):
            with scope.entered():
                workspace = plan.workspace()
                stack.enter_context(gradients_restored(workspace.parameters, plan.model, plan.guide))
                problem = plan.problem(rate, workspace)
                run = LiveRun(problem, workspace.batch)
                members.append(OneOfMany(scope, workspace, run, DivergenceMonitor(run)))
            problems.append((scope, problem))
        yield SimultaneousRuns(SimultaneousFits(problems, plans[0].engine), members)
        for member in members:
            problem = member.run.problem
            with member.scope.entered():
                check_support(problem.model, problem.guide, *member.run.batch[:2])
