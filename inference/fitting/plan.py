"""The plan of a fit: everything that defines it except its start, its learning rate and its seed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from pyro.infer import ELBO, Trace_ELBO
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler

from models.arguments import shown

from ..engine import Eager, Engine, Problem
from ..engine.local_rows import LocalRows
from ..engine.minibatches import Batch, Batches
from ..objectives import Objective, TraceELBO
from ..optimisers import Solver
from ..programs.arguments import checked
from ..programs.minibatch_check import check_minibatch_scale
from ..programs.separation import separated
from ..programs.support import check_support
from ..programs.validation import check_data, check_minibatch, check_rate, naming
from ..stopping import Rule
from .default_objective import lowest_variance_objective
from .per_parameter import as_maker
from .run import LiveRun
from .setup import (
    check_keywords,
    check_method,
    check_objective,
    check_optimiser,
    collect_parameters,
    gradients_restored,
    own_nan_check,
)

__all__ = ["FitPlan", "Workspace", "cosine"]


@checked
def cosine(optimiser: Optimizer, steps: int) -> LRScheduler:
    """A learning rate that falls to zero along half a cosine, which removes the noise of the last iterates."""
    return CosineAnnealingLR(optimiser, steps)


class Workspace(NamedTuple):
    """The objects of one run of a plan, which its steps change."""

    batches: Batches
    batch: Batch
    """The minibatch that represents the data when the run is set up and watched; all the data without minibatches."""
    rows: LocalRows
    parameters: list[Tensor]
    """The tensors to optimise: see `collect_parameters`."""
    names: tuple[set[str], set[str]]
    """Names of the parameters of the model, and of the guide."""


@dataclass(frozen=True)
class FitPlan:
    """A model, a guide, their data, and how to fit them: `check` the plan, open it with `opened`, and `begin` a run.

    Trials of learning rates, restarts and simultaneous fits are runs of one plan that differ in start, rate or seed. Their
    steps change only their `Workspace` and the parameters.
    """

    model: Callable[..., Any]
    """A Pyro model, called as model(*args): a model of this suite, any `PyroModule`, or a plain function with `pyro.param` and
    `pyro.module`. Modules are trained in place."""
    guide: Callable[..., Any]
    """A Pyro guide with the model's arguments: a guide of this suite, a Pyro autoguide, or as for the model."""
    args: tuple[Any, ...]
    """The data: the positional arguments of model and guide."""
    rules: tuple[Rule, ...]
    """Rules of `inference.stopping`. The first that returns a `Stop` ends the fit. Empty for a `Solver`, which stops by
    itself."""
    steps: int | None
    """Maximum number of optimiser steps, or of a solver's iterations; None if it is not known beforehand."""
    objective: Objective | ELBO | None
    """An objective of `inference.objectives` or an ELBO object of Pyro. None is the estimator of Pyro's `Trace_ELBO` with one
    draw, or, if a rule sets the learning rate, the estimator with the lowest variance (`lowest_variance_objective`)."""
    optimiser: Callable[..., Optimizer] | Solver
    """Makes a torch optimiser from parameters and `lr`; or a `Solver` of `inference.optimisers`, which needs no learning rate,
    schedule or objective."""
    schedule: Callable[[Optimizer, int], LRScheduler] | None
    """Makes a learning-rate schedule from the optimiser and `steps`; None for a constant rate. If `steps` is None or a rule
    sets the rate, the default `cosine` is not used, and any other schedule is refused."""
    batch_size: int | None
    """Number of rows in a minibatch, drawn by epoch shuffling; None for all the data. Model and guide must take `index` and
    `size`."""
    transform: Callable[[Tensor], Tensor] | None
    """Applied to the rows x = args[0] of each step, such as `models.images.binarise` for dynamic binarisation."""
    engine: type[Engine]
    """Runs the steps. All engines of `inference.engine` take the same trajectory, to rounding. `Auto` starts with Pyro and
    changes to captured and compiled code where that is faster; `Eager` is Pyro throughout, the same to the last bit."""
    kwargs: Mapping[str, Any] | None = None
    """Keyword arguments of model and guide, the same in each call."""

    @property
    def sets_rate(self) -> bool:
        """Whether a rule sets the learning rate."""
        return any(rule.sets_rate for rule in self.rules)

    def check(self, lr: float | None) -> None:
        """Raises a TypeError or ValueError for options that cannot be carried out.

        Args:
            lr: the learning rate that was asked for, if any.
        """
        if lr is not None:
            check_rate(lr)
        as_maker(self.optimiser, lr)
        check_keywords(self.kwargs or {}, self.args, self.optimiser, minibatches=self.batch_size is not None)
        if self.transform is None:
            check_data(self.model, self.args)
        if self.batch_size is not None:
            check_minibatch(self.model, self.guide, self.args, self.batch_size)
        check_objective(self.objective, self.args)
        check_method(self.objective, self.optimiser, repeatable=self.batch_size is None and self.transform is None)
        custom = self.schedule not in (None, cosine) and not isinstance(self.optimiser, Solver)
        if custom and (self.sets_rate or self.steps is None):
            raise ValueError(
                "a schedule is made for a known number of steps and sets the learning rate: give steps, and no rule that sets "
                "the rate too, such as Converged."
            )

    @contextmanager
    def opened(self) -> Iterator[tuple[FitPlan, Workspace]]:
        """Yields the plan with its default objective filled in, and a workspace. Call it inside `isolated`.

        Inside the context, gradients are enabled and Pyro's NaN checks are off. Gradients that the parameters had before are
        restored afterwards.
        """
        with torch.enable_grad():
            workspace = self.workspace()
            with gradients_restored(workspace.parameters, self.model, self.guide):
                chosen = self._objective(workspace.batch) if self.objective is None else self.objective
                with own_nan_check():
                    yield replace(self, objective=chosen), workspace
                    check_support(self.model, self.guide, *workspace.batch[:2])

    def workspace(self, batch: Batch | None = None) -> Workspace:
        """A new workspace at the present λ. Runs the pair once, which checks it and makes its parameters.

        Args:
            batch: for `Workspace.batch`; by default the first of the new minibatches.
        """
        keywords = separated(dict(self.kwargs or {}))
        batches, rows = Batches(self.args, self.batch_size, self.transform, keywords), LocalRows()
        new = batch is None
        if batch is None:
            batch = batches.peek()
            if self.transform is not None:
                check_data(self.model, batch.args)
        plain = self.objective is None or isinstance(self.objective, Trace_ELBO | TraceELBO)
        enumerated = not plain and not isinstance(self.optimiser, Solver)
        parameters, names = collect_parameters(self.model, self.guide, batch, rows, enumerated=enumerated)
        if new and self.batch_size is not None:
            call = (self.model, self.guide, self.args, self.batch_size)
            check_minibatch_scale(*call, kwargs=keywords, transform=self.transform)
        return Workspace(batches, batch, rows, parameters, names)

    def problem(self, rate: float, workspace: Workspace) -> Problem:
        """The input of an engine: the plan on this workspace, with a new optimiser.

        Raises:
            TypeError: for an optimiser that does not suit these parameters (`check_optimiser`).
        """
        assert not isinstance(self.optimiser, Solver)
        with naming("optimiser", self.optimiser, ()):
            optimiser = as_maker(self.optimiser)(workspace.parameters, lr=rate)
        if not isinstance(optimiser, Optimizer):
            raise TypeError(f"optimiser must make an Optimizer of torch, but made {shown(optimiser)}.")
        check_optimiser(optimiser, workspace.rows)
        schedule = None
        if self.schedule is not None and self.steps is not None and not self.sets_rate:
            with naming("schedule", self.schedule, ()):
                schedule = self.schedule(optimiser, self.steps)
            if not hasattr(schedule, "step"):
                raise TypeError(f"schedule must make an LRScheduler of torch, but made {shown(schedule)}.")
        batches, rows, parameters = workspace.batches, workspace.rows, workspace.parameters
        pair = (self.model, self.guide)
        return Problem(*pair, self.objective, batches, rows, parameters, optimiser, schedule, self.steps)

    def begin(self, rate: float, workspace: Workspace, engine: type[Engine] | None = None) -> tuple[Engine, LiveRun]:
        """A run before its first step.

        Args:
            rate: learning rate of the first step.
            workspace: for this run alone.
            engine: by default the plan's.
        """
        problem = self.problem(rate, workspace)
        return (self.engine if engine is None else engine)(problem), LiveRun(problem, workspace.batch)

    def trial(self, rate: float, batch: Batch) -> tuple[Engine, LiveRun]:
        """A short run from the present λ by `Eager`, with a workspace of its own."""
        return self.begin(rate, self.workspace(batch), Eager)

    def _objective(self, batch: Batch) -> Objective:
        return lowest_variance_objective(self.guide, batch) if self.sets_rate else TraceELBO()
