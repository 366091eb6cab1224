"""Several guides of one model, side by side with the truth."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from math import ceil, nan
from typing import Any, NamedTuple

import numpy as np
import torch
from joblib import Parallel, delayed
from pyro.infer import ELBO
from torch import Tensor
from torch.optim import Optimizer
from tqdm import tqdm

from guides import Posterior, Prior

from ..elbos.estimate import elbo
from ..fitting.many import fit_many
from ..objectives import Objective
from ..optimisers import Solver
from ..programs.arguments import checked
from ..programs.bound import unwrap
from ..programs.copying import copied
from ..programs.isolation import isolated
from ..programs.validation import as_args, check_count, check_data, check_rate
from .surroundings import outside_tensors, restored
from .table import Comparison, Run
from .truth import best_known_elbo, known_evidence

__all__ = ["compare"]

FLOOR, CEILING = "prior", "exact posterior"


@checked
def compare(
    model: Callable[..., Any],
    guides: Mapping[str, Callable[[Any], Callable[..., Any]]],
    x: Tensor | tuple[Any, ...],
    *,
    objectives: Mapping[str, Objective | ELBO] | None = None,
    optimisers: Mapping[str, Callable[..., Optimizer] | Solver] | None = None,
    steps: int | None = 2000,
    lr: float | None = 0.05,
    batch_size: int | None = None,
    seeds: int | Sequence[int] = 3,
    draws: int = 1000,
    jobs: int = 1,
    progress: bool = False,
    **options: Any,
) -> Comparison:
    """Fits every guide with every seed, objective and optimiser, and measures its ELBO.

    Each run works on its own copy of the model, and learns the copy's parameters if there are any. Nets that a plain function
    takes from its surroundings are trained from the same values in each run, and then get these values back. All guides share
    the seeds.
    Two reference rows need no fit: the prior as a guide (the floor), unless it is improper, and the exact posterior (the
    ceiling), if it is known. They use the model as given, so a guide that is fitted with its model can exceed the ceiling.

    Args:
        model: the model.
        guides: name -> factory, any callable model -> guide: ``lambda m: Local(m, MeanField())``, or Pyro's ``AutoNormal``.
        x: the data, or a tuple of the model's arguments.
        objectives: name -> objective of the fit; a further axis. The ELBO after the fit is always estimated the same way.
        optimisers: name -> `optimiser` of `fit`; a further axis of the table.
        steps, lr, batch_size: as for `fit`, for every run; with steps=None and lr=None each fit finds its rate and its end.
        seeds: the seeds, or their number.
        draws: draws for each ELBO after the fit.
        jobs: processes that share the runs.
        progress: whether to show a progress bar.
        options: further options of `fit`.

    Raises:
        TypeError, ValueError: for bad input, before any work starts.
    """
    args, seeds = as_args(x), range(seeds) if isinstance(seeds, int) else seeds
    _check(model, guides, args, steps=steps, lr=lr, seeds=seeds, draws=draws, jobs=jobs)
    axes = {"objective": _axis("objectives", objectives, options), "optimiser": _axis("optimisers", optimisers, options)}
    rows = list(_plan(guides, axes, {"steps": steps, "lr": lr, "batch_size": batch_size, **options}))
    fitted = _fitted(model, x, rows, seeds, draws=draws, jobs=jobs, progress=progress)
    floor, ceiling = _references(model, x, draws)
    return Comparison(
        model=type(model).__name__ if isinstance(model, torch.nn.Module) else getattr(model, "__name__", "model"),
        rows=next((len(value) for value in args if isinstance(value, Tensor) and value.dim()), 1),
        learned=_is_learned(model),
        runs=(*floor, *fitted, *ceiling),
    )


class _Row(NamedTuple):
    """One row of the table to be fitted."""

    guide: str
    factory: Callable[[Any], Any]
    chosen: dict[str, str]
    """Names of its objective and optimiser; "" for an axis that is not compared."""
    options: dict[str, Any]
    """Options of its fits."""


def _check(
    model: Callable[..., Any],
    guides: Mapping[str, Any],
    args: tuple[Any, ...],
    *,
    steps: int | None,
    lr: float | None,
    seeds: Sequence[int],
    draws: int,
    jobs: int,
) -> None:
    check_count(jobs=jobs, seeds=len(seeds), **({} if steps is None else {"steps": steps}))
    check_count(draws=draws, least=2)
    if lr is not None:
        check_rate(lr)
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"seeds are {list(seeds)}: duplicate seeds understate the standard error; pass each seed once.")
    if not guides:
        raise ValueError("no guides to compare: pass at least one name -> factory.")
    if taken := [name for name in guides if name.startswith((FLOOR, CEILING))]:
        raise ValueError(f"{taken[0]!r} is the name of a reference row: give the guide another name.")
    check_data(model, args)


def _axis(name: str, values: Mapping[str, Any] | None, options: Mapping[str, Any]) -> Mapping[str, Any]:
    """The values of an axis by name; only the name "" for an axis that is not compared."""
    if values is None:
        return {"": None}
    if not values or "" in values:
        raise ValueError(f"{name} needs at least one name -> value, and no empty name; or leave it out.")
    if name[:-1] in options:
        raise ValueError(f"{name} and {name[:-1]} are both given: leave one out.")
    return values


def _plan(guides: Mapping[str, Any], axes: Mapping[str, Mapping[str, Any]], options: dict[str, Any]) -> Iterator[_Row]:
    for guide, factory in guides.items():
        for objective in axes["objective"]:
            for optimiser in axes["optimiser"]:
                chosen = {"objective": objective, "optimiser": optimiser}
                own = {axis: axes[axis][name] for axis, name in chosen.items() if name}
                yield _Row(guide, factory, chosen, {**options, **own})


def _fitted(model: Any, x: Any, rows: list[_Row], seeds: Sequence[int], *, draws: int, jobs: int, progress: bool) -> list[Run]:
    """The runs of all rows, shared out to processes."""
    # Seeds of one row are fitted together, unless a process would be idle.
    parts = np.array_split(seeds, min(len(seeds), ceil(jobs / len(rows))))
    dtype = torch.get_default_dtype()
    work = (delayed(_runs)(model, x, row, part.tolist(), draws=draws, dtype=dtype) for row in rows for part in parts)
    fitted: list[Run] = []
    with tqdm(total=len(rows) * len(seeds), disable=not progress, unit="fit") as bar:
        for done in Parallel(n_jobs=jobs, return_as="generator")(work):
            fitted += done
            bar.update(len(done))
    return fitted


def _runs(model: Any, x: Any, row: _Row, seeds: list[int], *, draws: int, dtype: torch.dtype) -> list[Run]:
    """The runs of one row with some of the seeds, in any process."""
    with isolated(0):
        torch.set_default_dtype(dtype)
        pairs = [_pair(model, row.factory, seed) for seed in seeds]
        outside = outside_tensors(*pairs[0], as_args(x))
        # Fits that train the same net of the enclosing scope run one by one, each from the values that it had before.
        parts = [[k] for k in range(len(seeds))] if outside else [list(range(len(seeds)))]
        runs = []
        for part in parts:
            with restored(outside):
                fits = fit_many([pairs[k] for k in part], x, seeds=[seeds[k] for k in part], **row.options)
                for k, done in zip(part, fits, strict=True):
                    found = elbo(done.model, done.guide, x, draws=draws, seed=done.seed)
                    evidence, best = known_evidence(pairs[k][0], x), best_known_elbo(*pairs[k], x)
                    runs.append(Run(row.guide, done.seed, found.value, found.se, evidence, best, done, **row.chosen))
        return runs


def _pair(model: Any, factory: Callable[[Any], Any], seed: int) -> tuple[Any, Any]:
    """A copy of the model, and a guide of its own: a copy, if the factory gives the same one again."""
    own = copy.deepcopy(model)
    with isolated(seed):
        guide = factory(own)
    with isolated(seed):
        return own, copied(guide, {}) if factory(own) is guide else guide


def _references(model: Any, x: Any, draws: int) -> tuple[list[Run], list[Run]]:
    """The floor, empty for an improper prior, which has no draws, and the ceiling, empty for an unknown posterior."""
    which = " of the model as given" if _is_learned(model) else ""

    def row(name: str, guide: Prior | Posterior) -> Run:
        found, evidence = elbo(model, guide, x, draws=draws), known_evidence(model, x)
        best = evidence if isinstance(guide, Posterior) else nan
        return Run(name + which, None, found.value, found.se, evidence, best, None)

    floor = [row(FLOOR, Prior(model))] if getattr(unwrap(model), "proper", True) else []
    ceiling = [row(CEILING, Posterior(model))] if hasattr(model, "posterior") else []
    return floor, ceiling


def _is_learned(model: Any) -> bool:
    return isinstance(model, torch.nn.Module) and any(p.requires_grad for p in model.parameters())
