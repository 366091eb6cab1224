"""The route of a fit that names no option: what is tried first, how it is checked, and what it gives way to."""

from __future__ import annotations

import time
from dataclasses import dataclass
from math import inf, isfinite, nan
from typing import Any, NamedTuple

import torch
from pyro.util import get_rng_state, set_rng_state
from torch import Tensor

from ..optimisers import NaturalGradient, Solution, SolverTask
from ..optimisers.gaussian_guides import GaussianGuide, gaussian_guide
from ..optimisers.gaussian_state import GaussianState
from ..programs.packed_scores import PackedScores
from ..stopping import Stop
from .plan import FitPlan, Workspace

__all__ = ["Attempt", "attempt_of", "by_natural_gradients"]

MAX_ITERATIONS = 200
"""Iterations of natural gradients. A posterior that is nearly Gaussian takes about ten."""
MAX_NUMBERS = 2**22
"""Numbers in the covariances of all data: more take too much memory and time."""
STARTS = 3
"""Starts for one q over all data. With one q for each datum there is one."""
FRESH_DRAWS = 1000
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


def attempt_of(name: str, losses: Tensor, stop: Stop, seconds: float) -> Attempt:
    """The record of a route that ended the fit."""
    return Attempt(name, seconds, -float(losses[-100:].double().mean()) if len(losses) else nan, stop.reason)


class Route(NamedTuple):
    """The outcome of a first route: a record and, if it holds, the losses and the reason why it ended."""

    attempt: Attempt | None
    losses: Tensor | None = None
    stop: Stop | None = None


def by_natural_gradients(plan: FitPlan, workspace: Workspace, *, deadline: float = inf) -> Route:
    """Natural gradients, if q is a Gaussian over continuous latents of a model that has nothing to learn.

    The result is kept if `FRESH_DRAWS` draws that the solver has not seen confirm it: their ELBO is finite, not below that of
    the start, and not below the solver's own estimate. Else the parameters and the random state return to the start.

    Args:
        plan, workspace: an opened plan.
        deadline: reading of `time.perf_counter` at which the solver ends.
    """
    begin = time.perf_counter()
    task = SolverTask(plan.model, plan.guide, plan.args, workspace.parameters, deadline)
    target = _target(task)
    if target is None:
        return Route(None)
    start, before, rng = target.read(), [p.detach().clone() for p in workspace.parameters], get_rng_state()
    solver = NaturalGradient(starts=STARTS if start.loc.dim() == 1 else 1)
    solution: Solution | None = None
    try:
        solution = solver.solve(task, steps=MAX_ITERATIONS)
        elbo, doubt = _checked(plan, target, start, solution)
    except (RuntimeError, ValueError, NotImplementedError) as error:
        elbo, doubt = nan, f"failed: {type(error).__name__}"
    if solution is None or doubt:
        with torch.no_grad():
            for parameter, value in zip(workspace.parameters, before, strict=True):
                parameter.copy_(value)
        set_rng_state(rng)
        return Route(Attempt("NaturalGradient", time.perf_counter() - begin, elbo, f"gave way: {doubt}"))
    stop = Stop(solver, f"NaturalGradient {solution.reason}", converged=solution.converged, distance=solution.distance)
    attempt = Attempt("NaturalGradient", time.perf_counter() - begin, elbo, stop.reason)
    return Route(attempt, torch.tensor(solution.losses, dtype=torch.float64), stop)


def _target(task: SolverTask) -> GaussianGuide | None:
    """The Gaussian of the guide, if it is not too large; None where the route does not apply."""
    try:
        target = gaussian_guide(task)
    except (ValueError, TypeError, RuntimeError, NotImplementedError):
        return None
    if target is None:
        return None
    loc = target.read().loc
    return target if loc.numel() * loc.shape[-1] <= MAX_NUMBERS else None


def _checked(plan: FitPlan, target: GaussianGuide, start: GaussianState, solution: Solution) -> tuple[float, str]:
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
    if not solution.converged and not solution.distance * _data(start) < MAX_LEFT:
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
