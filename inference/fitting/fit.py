"""Stochastic variational inference for any Pyro model and guide.

Reference: Kucukelbir, Tran, Ranganath, Gelman & Blei, "Automatic differentiation variational inference" (2017).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from pyro.infer import ELBO
from pyro.params.param_store import StateDict
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from ..engine import Auto, Engine
from ..engine.nonfinite import NonFiniteLossError
from ..objectives import Objective
from ..optimisers import Solver
from ..programs.arguments import checked
from ..programs.bound import owned_pair, working_pair
from ..programs.isolation import isolated
from ..programs.validation import as_args, check_count
from ..starting import Start
from ..stopping import Converged, MaxSeconds, MaxSteps, Rule, Stop
from .divergence import DivergedError
from .plan import FitPlan, Workspace, cosine
from .restarts import begin_at, checked_start
from .route import Attempt, Route, follow
from .text import fit_html, fit_summary, fit_text

__all__ = ["DivergedError", "Fit", "NonFiniteLossError", "cosine", "fit", "result_of"]


@dataclass(frozen=True)
class Fit:
    """The result of a fit. It owns its parameters: no later training changes its numbers."""

    model: Callable[..., Any]
    """The model. A module that learns is a copy; a plain function is bound to its fitted parameters and nets."""
    guide: Callable[..., Any]
    """The fitted guide, likewise."""
    nelbo: Tensor
    """The loss of each step: an estimate of −ELBO of the whole data, in nats; lower is better. Shape (steps,)."""
    steps: int
    """Number of optimiser steps, or of a solver's iterations."""
    seconds: float
    seed: int
    stop: Stop
    """The rule that ended the fit, its reason, and its estimate of the distance to the best λ."""
    params: StateDict = field(repr=False)
    """State of the param store at the end."""
    route: tuple[Attempt, ...] = ()
    """What was tried, in order: the name, the seconds, the ELBO that it reached, and why it ended or gave way."""

    def __repr__(self) -> str:
        return fit_text(self)

    def _repr_html_(self) -> str:
        return fit_html(self)

    def summary(self, x: Any = None, *, verdict: Any = None, draws: int = 4000, seed: int = 0) -> Any:
        """A DataFrame with a row for each latent: mean, sd, quantiles and colours of `verdict`; arguments as `fit_summary`."""
        return fit_summary(self, x, verdict=verdict, draws=draws, seed=seed)


@checked
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
    optimiser: Callable[..., Optimizer] | Solver | None = None,
    schedule: Callable[[Optimizer, int], LRScheduler] | None = cosine,
    batch_size: int | None = None,
    engine: type[Engine] = Auto,
    transform: Callable[[Tensor], Tensor] | None = None,
    kwargs: Mapping[str, Any] | None = None,
    seed: int = 0,
    seconds: float | None = None,
    progress: bool = False,
) -> Fit:
    """Maximises the ELBO over the parameters of `guide`, and over those of `model` if it has any.

    Tries natural gradients first if no option of the method is named (`follow`). Restores global state. `FitPlan` says more.

    Args:
        model, guide: a Pyro pair, called as model(x), or as model(*x) if `x` is a tuple.
        x: the data.
        steps: number of optimiser steps; a maximum if `stop` is given too. Without either, the rule is `Converged()`.
        lr: learning rate of the first step. Default: 0.01, or found by short trials if a rule (`Converged`) sets the rate.
        stop: one or several rules of `inference.stopping`. The first that is met ends the fit; `Fit.stop` says which.
        start: moves the guide to where the fit starts: one of `inference.starting`. Default: the guide stays as it is.
        restarts: number of starts to follow for a few steps, to continue from the best. Default start: a draw of the prior.
        objective: one of `inference.objectives` or a Pyro ELBO. Default: `TraceELBO()`, less noisy if a rule sets the rate.
        optimiser: makes a torch optimiser from parameters and `lr`, by default Adam; or a `Solver` of `inference.optimisers`.
        schedule: makes a learning-rate schedule from the optimiser and `steps`. None: a constant rate.
        batch_size: number of rows in a minibatch. Default: all the data.
        engine: how to run the steps: one of `inference.engine`, all with the same trajectory to rounding.
        transform: applied to the rows of x in each step, such as `models.images.binarise`.
        kwargs: keyword arguments of model and guide.
        seed: fixes initial values that the guide draws, the minibatches and the noise.
        seconds: time after which the fit ends with what it has, not converged. Default: no limit.
        progress: whether to show a progress bar.

    Raises:
        TypeError, ValueError: for bad input, before any work starts.
        NonFiniteLossError, DivergedError: if a loss or gradient is not finite; if the ELBO falls far below its start.
    """
    named = (steps, lr, stop, start, objective, optimiser, batch_size, transform, kwargs)
    natural = all(option is None for option in named) and restarts == 1 and schedule is cosine and engine is Auto
    optimiser = torch.optim.Adam if optimiser is None else optimiser
    args, rules, pair = as_args(x), _rules(steps, stop, optimiser, seconds), working_pair(model, guide)
    plan = FitPlan(*pair, args, rules, steps, objective, optimiser, schedule, batch_size, transform, engine, kwargs)
    plan.check(lr)
    start = checked_start(plan, start, restarts)
    begin = time.perf_counter()
    with isolated(seed) as store, plan.opened() as (plan, workspace):
        begin_at(plan, workspace.batch, start, restarts, lr)
        route = follow(plan, workspace, lr, natural=natural, seconds=seconds, progress=progress)
    return result_of(plan, workspace, store, route, seed=seed, seconds=time.perf_counter() - begin)


def result_of(plan: FitPlan, workspace: Workspace, store: StateDict, route: Route, *, seed: int, seconds: float) -> Fit:
    """The result of a finished run. `store` is the state of the param store when its scope was left."""
    learned, used = {id(parameter) for parameter in workspace.parameters}, set.union(*workspace.names)
    for name in [name for name, value in store["params"].items() if not (name in used or id(value) in learned)]:
        del store["params"][name], store["constraints"][name]  # another program's, which the user's param store holds
    model, guide, store = owned_pair(plan.model, plan.guide, store, workspace.names, (plan.args, plan.kwargs))
    return Fit(
        model=model,
        guide=guide,
        nelbo=route.losses,
        steps=len(route.losses),
        seconds=seconds,
        seed=seed,
        stop=route.stop,
        params=store,
        route=route.attempts,
    )


def _rules(steps: int | None, stop: Rule | Sequence[Rule] | None, optimiser: Any, seconds: float | None) -> tuple[Rule, ...]:
    """The rules of a fit, with `steps` as the last one; raises a TypeError or ValueError for bad input."""
    if seconds is not None:
        MaxSeconds(seconds)
    if steps is not None:
        check_count(steps=steps)
    if isinstance(optimiser, Solver):
        if stop is not None:
            raise ValueError(f"{type(optimiser).__name__} stops by itself: leave stop=None, or use torch's Adam.")
        return ()
    rules = () if stop is None else tuple(stop) if isinstance(stop, Sequence) else (stop,)
    for rule in rules:
        if not isinstance(rule, Rule):
            hint = f"pass an instance, {rule.__name__}(...)" if isinstance(rule, type) else "see inference.stopping"
            raise TypeError(f"stop must be a rule such as Converged(), or several, but holds {rule!r}; {hint}.")
    return (*rules, MaxSteps(steps)) if steps is not None else rules or (Converged(),)
