"""Posterior predictive checks: interval coverage of the data, and leave-one-out predictive densities."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from pyro import poutine
from pyro.infer import Predictive
from torch import Tensor

from models.arguments import number

from ..evidence.psis import leave_one_out_density
from ..programs.arguments import checked
from ..programs.draws import draw_all
from ..programs.isolation import isolated
from ..programs.validation import as_args, check_count, check_data, check_pair

__all__ = ["LOO", "Coverage", "loo", "predictive_coverage"]


class Coverage(NamedTuple):
    """Share of the entries of x inside the central predictive interval of each level."""

    levels: tuple[float, ...]
    share: tuple[float, ...]


class LOO(NamedTuple):
    """Expected log predictive density of each datum given the others, in nats; higher is better."""

    elpd: float
    se: float
    pointwise: Tensor
    """Shape (N,)."""
    khat: Tensor
    """Pareto k̂ of each datum's weights, shape (N,); above 0.7 that datum's entry is unreliable."""


@checked
def predictive_coverage(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    x: Tensor | tuple[Any, ...],
    *,
    levels: tuple[float, ...] = (0.5, 0.8, 0.95),
    draws: int = 1000,
    seed: int = 0,
) -> Coverage:
    """Coverage of the data by the fitted guide's predictive intervals for replications of them.

    The fit has used the data, so a good model covers somewhat more than the level.

    Reference: Gelman, Meng & Stern, "Posterior predictive assessment of model fitness via realized discrepancies" (1996).
    """
    args = as_args(x)
    check_count(draws=draws, least=2)
    check_data(model, args)
    for level in levels:
        number("each of levels", level, above=0, below=1)
    with isolated(seed), torch.no_grad():
        check_pair(model, guide, args, {})
        h = draw_all(model, guide, args, draws=draws).h
        simulated = Predictive(poutine.uncondition(model), posterior_samples=h)(*args)
        nodes = poutine.trace(model).get_trace(*args).nodes.values()
        observed = {s["name"]: s["value"] for s in nodes if s["type"] == "sample" and s["is_observed"]}
    shares = []
    for level in levels:
        tails = torch.tensor([(1 - level) / 2, (1 + level) / 2])
        inside = []
        for name, value in observed.items():
            low, high = torch.quantile(simulated[name].double(), tails.double(), 0)
            inside.append(((value >= low) & (value <= high)).double().flatten())
        shares.append(float(torch.cat(inside).mean()))
    return Coverage(tuple(levels), tuple(shares))


@checked
def loo(
    model: Callable[..., Any], guide: Callable[..., Any], x: Tensor | tuple[Any, ...], *, draws: int = 2000, seed: int = 0
) -> LOO:
    """Leave-one-out predictive densities from an approximate posterior, by importance sampling.

    The weights for datum i are p(x, h) / (q(h | x) p(x_i | h)): the ratio p(x, h) / q(h | x) corrects q, and 1 / p(x_i | h)
    leaves the datum out. ArviZ ≥ 1 computes the densities by `loo_approximate_posterior`; with ArviZ 0.x the weights are
    smoothed here.

    Raises:
        ValueError: if the model has more than one observed site, or its data are not independent given h.

    Reference: Magnusson, Andersen, Jonasson & Vehtari, "Bayesian leave-one-out cross-validation for large data" (2019).
    """
    args = as_args(x)
    check_count(draws=draws, least=2)
    check_data(model, args)
    with isolated(seed), torch.no_grad():
        check_pair(model, guide, args, {})
        found = draw_all(model, guide, args, draws=draws)
    names = list(found.pointwise)
    if len(names) != 1:
        raise ValueError(f"loo needs exactly one observed site, but the model has {names}.")
    pointwise = found.pointwise[names[0]].double()
    if pointwise.dim() != 2:
        raise ValueError(
            f"the log densities of site {names[0]!r} have shape {tuple(pointwise.shape[1:])} for each draw, but loo needs one "
            "for each datum: it is for data that are independent given h."
        )
    if pointwise.shape[1] < 2:
        raise ValueError("loo: x needs at least two rows, for a standard error over them, but has one.")
    total = found.total
    log_p, log_q = (total.log_likelihood + total.log_prior).double(), total.log_q.double()
    each, khat = leave_one_out_density(log_p, log_q, pointwise)
    return LOO(float(each.sum()), float(each.std() * len(each) ** 0.5), each, khat)
