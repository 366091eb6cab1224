"""Fits of one program with several seeds."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from pyro.infer import ELBO
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from tqdm import tqdm

from ..engine import Auto, Engine
from ..objectives import Objective, TraceELBO
from ..optimisers import Solver
from ..programs.arguments import checked
from ..programs.bound import working_pair
from ..programs.isolation import Scope
from ..programs.validation import as_args, check_count
from ..stopping import MaxSteps
from ..stopping.max_steps import taken
from .fit import Fit, fit, result_of
from .learning_rate import DEFAULT_RATE
from .plan import FitPlan, cosine
from .route import Route
from .simultaneous import simultaneous_runs

__all__ = ["fit_many"]


@checked
def fit_many(
    pairs: Sequence[tuple[Callable[..., Any], Callable[..., Any]]],
    x: Tensor | tuple[Any, ...],
    *,
    seeds: Sequence[int],
    steps: int | None = None,
    lr: float | None = None,
    objective: Objective | ELBO | None = None,
    optimiser: Callable[..., Optimizer] | Solver = torch.optim.Adam,
    schedule: Callable[[Optimizer, int], LRScheduler] | None = cosine,
    batch_size: int | None = None,
    engine: type[Engine] = Auto,
    transform: Callable[[Tensor], Tensor] | None = None,
    kwargs: Mapping[str, Any] | None = None,
    progress: bool = False,
    **options: Any,
) -> tuple[Fit, ...]:
    """`fit` of each pair with its seed; small models take the steps of all fits simultaneously.

    A step of a small model costs mostly the calls of its operations, and one call can serve all fits. Each fit has its own
    random state and takes the trajectory that it takes alone, to rounding. Fits run one after another if they have no common
    number of steps (no `steps`, or a `stop`), use a solver or `engine.Eager`, or if their step cannot be mapped
    (`engine.SimultaneousFits` says when).

    Args:
        pairs: model and guide of each fit: the same programs, each pair with parameters of its own.
        x: the data of all fits.
        seeds: one for each pair.
        steps, lr, objective, optimiser, schedule, batch_size, engine, transform, kwargs, progress: as for `fit`.
        options: the other options of `fit`. With any of them, fits run one after another.

    Returns:
        The fits in the order of `pairs`. `Fit.seconds` is an equal share of the total.

    Raises:
        TypeError, ValueError: for bad input, before any work starts.
        NonFiniteLossError, DivergedError: as `fit`, from the first fit that fails; the other fits are lost.
    """
    _check_pairs(pairs, seeds)
    if steps is None or options or isinstance(optimiser, Solver):
        options |= {"steps": steps, "lr": lr, "objective": objective, "optimiser": optimiser, "schedule": schedule}
        options |= {"batch_size": batch_size, "engine": engine, "transform": transform, "kwargs": kwargs, "progress": progress}
        return tuple(fit(*pair, x, seed=seed, **options) for pair, seed in zip(pairs, seeds, strict=True))
    check_count(steps=steps)
    rule, loss = MaxSteps(steps), TraceELBO() if objective is None else objective
    pairs = [working_pair(*pair) for pair in pairs]
    args = as_args(x)
    plan = FitPlan(*pairs[0], args, (rule,), steps, loss, optimiser, schedule, batch_size, transform, engine, kwargs)
    plan.check(lr)
    begin, scopes = time.perf_counter(), [Scope(seed) for seed in seeds]
    plans = [replace(plan, model=model, guide=guide) for model, guide in pairs]
    bar = tqdm(total=steps, disable=not progress, unit="step")
    with simultaneous_runs(plans, scopes, DEFAULT_RATE if lr is None else lr) as runs, bar:
        runs.advance(steps, bar)
    seconds = (time.perf_counter() - begin) / len(pairs)
    return tuple(
        result_of(plan, one.workspace, one.scope.store, Route(one.run.losses, taken(rule), ()), seed=seed, seconds=seconds)
        for plan, one, seed in zip(plans, runs.members, seeds, strict=True)
    )


def _check_pairs(pairs: Sequence[tuple[Any, Any]], seeds: Sequence[int]) -> None:
    """Raises unless there is one seed for each pair, and no pair shares parameters with another."""
    if not pairs:
        raise ValueError("no pairs of model and guide to fit: pass at least one.")
    if len(pairs) != len(seeds):
        raise ValueError(f"there are {len(pairs)} pairs, but {len(seeds)} seeds: give one for each.")
    owner: dict[int, int] = {}
    for k, pair in enumerate(pairs):
        for program, role in zip(pair, ("model", "guide"), strict=True):
            if not isinstance(program, nn.Module):
                continue
            learned = [f"the parameter {name!r}" for name, p in program.named_parameters() if p.requires_grad]
            # A guide may make its parameters when it is first called.
            parts = {id(program): "the guide"} if role == "guide" else {}
            parts |= dict(zip((id(p) for p in program.parameters() if p.requires_grad), learned, strict=True))
            for part, name in parts.items():
                if owner.setdefault(part, k) != k:
                    raise ValueError(
                        f"{name} of pair {k} also belongs to pair {owner[part]}, and one fit would overwrite the other's: "
                        "give each pair its own guide, and its own copy of a model that learns."
                    )
