"""Fits of one program with several seeds."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
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
from ..programs.bound import bind
from ..programs.isolation import Scope
from ..programs.validation import as_args, check_count, check_data, check_minibatch, check_rate
from ..stopping import MaxSteps
from ..stopping.max_steps import taken
from .fit import Fit, cosine, fit
from .setup import check_method
from .simultaneous import joint_runs

__all__ = ["fit_many"]


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
    progress: bool = False,
    **options: Any,
) -> tuple[Fit, ...]:
    """The same as ``fit`` of each pair with its seed, but that small models take the steps of all fits at once.

    A step of a small model is mostly the cost of calling its operations, which does not grow with the number of fits. Each fit
    keeps its own random state, and takes the trajectory that it takes alone, to rounding. Fits whose steps are not the same
    number for all (without `steps`, or with a rule that stops them), of a solver, or by `engine.Eager`, are done one after
    another, and so are those whose step cannot be mapped (see `engine.Together`).

    Args:
        pairs: model and guide of each fit. They are the same programs; parameters must be each pair's own.
        x: the data, the same for all.
        seeds: one for each pair.
        steps, lr, objective, optimiser, schedule, batch_size, engine, transform, progress: as for `fit`.
        options: the other options of `fit`.

    Returns:
        The fits in the order of `pairs`. The seconds of each are an equal share.

    Raises:
        TypeError, ValueError: for bad input, before any work starts.
        NonFiniteLossError, DivergedError: as `fit`, for the first fit that meets it; the others are lost with it.
    """
    args = as_args(x)
    _check_pairs(pairs, seeds)
    if steps is None or options or isinstance(optimiser, Solver):
        settings = {
            "steps": steps,
            "lr": lr,
            "objective": objective,
            "optimiser": optimiser,
            "schedule": schedule,
            "batch_size": batch_size,
            "engine": engine,
            "transform": transform,
            "progress": progress,
            **options,
        }
        return tuple(fit(*pair, x, seed=seed, **settings) for pair, seed in zip(pairs, seeds, strict=True))
    check_count(steps=steps)
    check_method(objective, optimiser, repeatable=True)
    rate = 0.01 if lr is None else lr
    check_rate(rate)
    if transform is None:
        check_data(pairs[0][0], args)
    if batch_size is not None:
        check_minibatch(*pairs[0], args, batch_size)
    begin = time.perf_counter()
    loss = TraceELBO() if objective is None else objective
    with ExitStack() as stack:
        runs = stack.enter_context(
            joint_runs(
                pairs,
                [Scope(seed) for seed in seeds],
                rate,
                steps,
                args=args,
                objective=loss,
                optimiser=optimiser,
                schedule=schedule,
                batch_size=batch_size,
                transform=transform,
                engine=engine,
            )
        )
        bar = stack.enter_context(tqdm(total=steps, disable=not progress, unit="step"))
        runs.advance(steps, bar)
    seconds = (time.perf_counter() - begin) / len(pairs)
    return tuple(
        Fit(
            model=bind(model, scope.store, names[0]),
            guide=bind(guide, scope.store, names[1]),
            nelbo=run.losses,
            steps=run.steps,
            seconds=seconds,
            seed=seed,
            stop=taken(MaxSteps(steps)),
            params=scope.store,
        )
        for (model, guide), (scope, run, names), seed in zip(pairs, runs.each, seeds, strict=True)
    )


def _check_pairs(pairs: Sequence[tuple[Any, Any]], seeds: Sequence[int]) -> None:
    if not pairs:
        raise ValueError("no pairs of model and guide to fit: pass at least one.")
    if len(pairs) != len(seeds):
        raise ValueError(f"there are {len(pairs)} pairs, but {len(seeds)} seeds: give one for each.")
    owner: dict[int, int] = {}
    for k, pair in enumerate(pairs):
        for program, what in zip(pair, ("model", "guide"), strict=True):
            if not isinstance(program, nn.Module):
                continue
            learned = [f"the parameter {name!r}" for name, p in program.named_parameters() if p.requires_grad]
            # A guide may make its parameters when it is first called.
            parts = {id(program): "the guide"} if what == "guide" else {}
            parts |= dict(zip((id(p) for p in program.parameters() if p.requires_grad), learned, strict=True))
            for part, name in parts.items():
                if owner.setdefault(part, k) != k:
                    raise ValueError(
                        f"{name} of pair {k} is also that of pair {owner[part]}, and one fit would overwrite the other's: "
                        "give each pair its own guide, and its own copy of a model that learns."
                    )
