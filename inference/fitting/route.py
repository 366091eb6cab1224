"""The route of a fit: natural gradients first where no option is named and they apply, else the method that is asked for."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from math import inf, isfinite, nan
from typing import Any, NamedTuple

import torch
from pyro.util import get_rng_state, set_rng_state
from torch import Tensor

from ..engine.nonfinite import NonFiniteLossError
from ..optimisers import NaturalGradient, Solution, Solver, SolverTask
from ..optimisers.gaussian_guides import GaussianGuide, gaussian_guide
from ..optimisers.gaussian_state import GaussianState
from ..programs.packed_scores import PackedScores
from ..stopping import MaxSeconds, Stop
from .descent import descend
from .learning_rate import choose_rate
from .plan import FitPlan, Workspace

__all__ = ["Attempt", "follow"]

MAX_ITERATIONS = 1000
"""Iterations of a solver if `steps` is None. Solvers that converge take tens; the limit ends those that do not."""
MAX_NATURAL = 200
"""Iterations of natural gradients that are tried first. A posterior that is nearly Gaussian takes about ten."""
MIN_SECONDS = 1e-3
"""Time that a method is given where an earlier one has used up the budget."""
MAX_DIM = 500
"""Latents of a datum: an iteration takes more than twice as many scores, and eigenvalues of a matrix of this size."""
MAX_NUMBERS = 2**22
"""Numbers in the covariances of all data: more take too much memory and time."""
STARTS = 3
"""Starts for one q over all data. With one q for each datum there is one."""
FRESH_DRAWS = 1000
MAX_LOSSES = 100
"""Last losses of an optimiser whose mean estimates the ELBO that it reached."""
MAX_LEFT = 0.5
"""Nats that may be left where the iterations end: the result is then returned, as not converged."""
MAX_SURPRISE = 1.0
"""Nats by which fresh draws may fall short of the solver's own estimate, besides its error."""


@dataclass(frozen=True)
class Attempt:
    """One route of a fit."""

    name: str
    seconds: float
    elbo: float
    """The ELBO that it reached, in nats, as its own check or its last losses estimate it; NaN if there is none."""
    reason: str
    """Why it ended, or gave way to the next."""

    def __str__(self) -> str:
        return f"{self.name}, {self.seconds:.3g} s, ELBO {self.elbo:.6g}: {self.reason}"


class Route(NamedTuple):
    """The outcome of a fit."""

    losses: Tensor
    """The loss of each step or iteration."""
    stop: Stop
    """Why it ended."""
    attempts: tuple[Attempt, ...]
    """What was tried, in order."""


def follow(
    plan: FitPlan, workspace: Workspace, lr: float | None, *, natural: bool, seconds: float | None, progress: bool
) -> Route:
    """Runs an opened plan.

    Args:
        lr: learning rate of the first step, if it was given.
        natural: whether natural gradients are tried first.
        seconds: time after which the fit ends with what it has; None for no limit.
        progress: whether to show a progress bar.

    Raises:
        NonFiniteLossError, DivergedError: as `fit`.
    """
    begin = time.perf_counter()
    deadline = inf if seconds is None else begin + seconds
    attempts: tuple[Attempt, ...] = ()
    if natural:
        first = _by_natural_gradients(plan, workspace, deadline)
        if isinstance(first, Route):
            return first
        attempts = () if first is None else (first,)
    begin = time.perf_counter()
    if isinstance(plan.optimiser, Solver):
        name = type(plan.optimiser).__name__
        losses, stop = _solve(plan, workspace, plan.optimiser, deadline)
    else:
        name = getattr(plan.optimiser, "__name__", type(plan.optimiser).__name__)
        rate = choose_rate(plan, workspace.batch, lr, deadline=deadline)
        if seconds is not None:
            left = max(deadline - time.perf_counter(), MIN_SECONDS)
            plan = replace(plan, rules=(*plan.rules, MaxSeconds(left)))
        losses, stop = descend(plan, workspace, rate, progress=progress)
    # The iterations of a solver start far away; the steps of an optimiser are noisy, so their mean says more.
    last = losses[-1:] if isinstance(plan.optimiser, Solver) else losses[-MAX_LOSSES:]
    elbo = -float(last.double().mean()) if len(last) else nan
    return Route(losses, stop, (*attempts, Attempt(name, time.perf_counter() - begin, elbo, stop.reason)))


def _solve(plan: FitPlan, workspace: Workspace, solver: Solver, deadline: float) -> tuple[Tensor, Stop]:
    """Runs the solver that was asked for. Returns the loss of each iteration, and why it ended."""
    name, steps = type(solver).__name__, MAX_ITERATIONS if plan.steps is None else plan.steps
    solution = solver.solve(SolverTask(plan.model, plan.guide, plan.args, workspace.parameters, deadline), steps=steps)
    losses = torch.tensor(solution.losses, dtype=torch.float64)
    if not losses[-1].isfinite():
        raise NonFiniteLossError(len(losses) - 1, None, f"{name} diverged, its loss is not finite")
    return losses, Stop(solver, f"{name} {solution.reason}", converged=solution.converged, distance=solution.distance)


def _by_natural_gradients(plan: FitPlan, workspace: Workspace, deadline: float) -> Route | Attempt | None:
    """Natural gradients, if q is a Gaussian over continuous latents of a model that has nothing to learn.

    The result is kept if `FRESH_DRAWS` draws that the solver has not seen confirm it: their ELBO is finite, not below that of
    the start, and not below the solver's own estimate. Else the parameters and the random state return to the start.

    Returns:
        The route; the record of one that gave way; or None where natural gradients do not apply.
    """
    begin = time.perf_counter()
    task = SolverTask(plan.model, plan.guide, plan.args, workspace.parameters, deadline)
    target = _target(task)
    if target is None:
        return None
    start, before, rng = target.read(), [p.detach().clone() for p in workspace.parameters], get_rng_state()
    solver = NaturalGradient(starts=STARTS if start.loc.dim() == 1 else 1)
    solution: Solution | None = None
    try:
        solution = solver.solve(task, steps=MAX_NATURAL)
        elbo, doubt = _checked(plan, target, start, solution, late=time.perf_counter() > deadline)
    except Exception as error:  # whatever fails here has another route to take
        elbo, doubt = nan, f"failed: {type(error).__name__}"
    if solution is None or doubt:
        with torch.no_grad():
            for parameter, value in zip(workspace.parameters, before, strict=True):
                parameter.copy_(value)
        set_rng_state(rng)
        return Attempt("NaturalGradient", time.perf_counter() - begin, elbo, f"gave way: {doubt}")
    stop = Stop(solver, f"NaturalGradient {solution.reason}", converged=solution.converged, distance=solution.distance)
    attempt = Attempt("NaturalGradient", time.perf_counter() - begin, elbo, stop.reason)
    return Route(torch.tensor(solution.losses, dtype=torch.float64), stop, (attempt,))


def _target(task: SolverTask) -> GaussianGuide | None:
    """The Gaussian of the guide, if it is not too large; None where the route does not apply."""
    try:
        target = gaussian_guide(task)
    except Exception:  # a program that this route cannot read has another one to take
        return None
    if target is None:
        return None
    loc = target.read().loc
    return target if loc.shape[-1] <= MAX_DIM and loc.numel() * loc.shape[-1] <= MAX_NUMBERS else None


def _checked(
    plan: FitPlan, target: GaussianGuide, start: GaussianState, solution: Solution, *, late: bool
) -> tuple[float, str]:
    """The ELBO of q by fresh draws, in nats, and what speaks against q: nothing if it is the empty string."""
    if not isfinite(solution.losses[-1]):
        return nan, "it diverged"
    scores = PackedScores(plan.model, target.latents, plan.args)
    elbo, se = _elbo(scores, target.read())
    at_start, se_at_start = _elbo(scores, start)
    if not isfinite(elbo):
        return elbo, "the ELBO of fresh draws is not finite"
    if isfinite(at_start) and elbo < at_start - 3 * (se**2 + se_at_start**2) ** 0.5:
        return elbo, f"fresh draws give an ELBO of {elbo:.4g}, less than the {at_start:.4g} of the start"
    if (short := -solution.losses[-1] - elbo) > MAX_SURPRISE + 5 * se:
        return elbo, f"fresh draws give an ELBO {short:.3g} nats below the solver's own estimate"
    if not solution.converged and not late and not solution.distance * _data(start) < MAX_LEFT:
        return elbo, f"it {solution.reason}"
    return elbo, ""


def _elbo(scores: PackedScores, q: GaussianState) -> tuple[float, float]:
    """The ELBO of q and its standard error, in nats."""
    noise = torch.randn(FRESH_DRAWS, *q.loc.shape, dtype=torch.float64)
    log_p, _ = scores(q.loc + (q.root @ noise.unsqueeze(-1)).squeeze(-1))
    log_p = log_p.reshape(FRESH_DRAWS, -1).sum(-1)
    return float(log_p.mean()) + q.entropy, float((log_p + 0.5 * noise.flatten(1).square().sum(-1)).std()) / FRESH_DRAWS**0.5


def _data(q: GaussianState) -> Any:
    """The number of data with a q of their own."""
    return q.loc[..., 0].numel()
