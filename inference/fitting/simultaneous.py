"""Fits that take their steps together."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from pyro.infer import ELBO, Trace_ELBO
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from ..engine import Engine, Problem, SimultaneousFits
from ..engine.local_rows import LocalRows
from ..engine.minibatches import Batches
from ..objectives import Objective, TraceELBO
from ..programs.isolation import Scope
from .divergence import DivergenceMonitor
from .run import LiveRun
from .setup import check_descent, gradients_restored, learned, own_nan_check

__all__ = ["JointRuns", "joint_runs"]


class JointRuns:
    """Several fits under way.

    Args:
        machine: takes their steps.
        each: of each fit its scope, the fit as it runs, and the names of the parameters of model and guide.
        watches: for divergence, one for each.
    """

    def __init__(
        self,
        machine: SimultaneousFits,
        each: list[tuple[Scope, LiveRun, tuple[set[str], set[str]]]],
        watches: list[DivergenceMonitor],
    ) -> None:
        self.each = each
        self._machine = machine
        self._watches = watches

    def advance(self, steps: int, bar: Any = None) -> None:
        """Takes them, in blocks that grow until they take a tenth of a second, and looks for divergence as `fit` does.

        Raises:
            NonFiniteLossError, DivergedError: from the first fit that meets it.
        """
        machine, size = self._machine, 1
        while machine.taken < steps:
            begin = time.perf_counter()
            block = min(size, self._watches[0].due - machine.taken, steps - machine.taken)
            losses = machine.advance(block)
            if bar is not None:
                bar.update(block)
            for (_, run, _), own in zip(self.each, losses.unbind(1), strict=True):
                run.add(own)
            if block == size and time.perf_counter() - begin < 0.1:
                size *= 2
            if machine.taken in (steps, self._watches[0].due):
                for (scope, run, _), watch in zip(self.each, self._watches, strict=True):
                    with scope.entered():
                        watch.look(run)


@contextmanager
def joint_runs(
    pairs: Sequence[tuple[Callable[..., Any], Callable[..., Any]]],
    scopes: Sequence[Scope],
    rate: float,
    steps: int,
    *,
    args: tuple[Any, ...],
    objective: Objective | ELBO,
    optimiser: Callable[..., Optimizer],
    schedule: Callable[[Optimizer, int], LRScheduler] | None,
    batch_size: int | None,
    transform: Callable[[Tensor], Tensor] | None,
    engine: type[Engine],
) -> Iterator[JointRuns]:
    """A fit of each pair in its scope, before its first step.

    Args:
        pairs: model and guide of each fit.
        scopes: of each, new or entered before.
        rate: the learning rate at the first step.
        args: the data.
        steps, objective, optimiser, schedule, batch_size, transform, engine: as for `fit`.
    """
    with ExitStack() as stack:
        stack.enter_context(own_nan_check())
        stack.enter_context(torch.enable_grad())
        members, each, watches = [], [], []
        for (model, guide), scope in zip(pairs, scopes, strict=True):
            with scope.entered():
                stream, rows = Batches(args, batch_size, transform), LocalRows()
                first = stream.peek()
                enumerated = not isinstance(objective, Trace_ELBO | TraceELBO)
                parameters, names = learned(model, guide, first, rows, enumerated=enumerated)
                stack.enter_context(gradients_restored(parameters))
                descent = optimiser(parameters, lr=rate)
                check_descent(descent, rows)
                decay = None if schedule is None else schedule(descent, steps)
                problem = Problem(model, guide, objective, stream, rows, parameters, descent, decay, steps)
                run = LiveRun(model, guide, objective, batch=first, rows=rows, parameters=parameters, optimiser=descent)
                watches.append(DivergenceMonitor(run, trial=lambda: False))
            members.append((scope, problem))
            each.append((scope, run, names))
        yield JointRuns(SimultaneousFits(members, engine), each, watches)
