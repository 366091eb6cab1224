"""What q predicts: coverage of the data at hand, and of each datum by the others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from pyro import poutine
from pyro.infer import Predictive
from torch import Tensor

from ..evidence.psis import leave_one_out
from ..programs.draws import draw_chunks
from ..programs.isolation import isolated
from ..programs.validation import as_args

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
    """Pareto k̂ of each datum's weights, shape (N,); above 0.7 its entry is not to be believed."""


def predictive_coverage(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    x: Tensor | tuple[Any, ...],
    *,
    levels: tuple[float, ...] = (0.5, 0.8, 0.95),
    draws: int = 1000,
    seed: int = 0,
) -> Coverage:
    """How often the data lie inside the intervals that the fitted guide predicts for their replications.

    The data have been used for the fit, so a good model covers somewhat more than the level.

    Reference: Gelman, Meng & Stern, "Posterior predictive assessment of model fitness via realized discrepancies" (1996).
    """
    args = as_args(x)
    with isolated(seed), torch.no_grad():
        h = _latents(model, guide, args, draws)
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


def loo(
    model: Callable[..., Any], guide: Callable[..., Any], x: Tensor | tuple[Any, ...], *, draws: int = 2000, seed: int = 0
) -> LOO:
    """Leave-one-out predictive density from an approximate posterior, by importance sampling twice over.

    The weights of datum i's leave-one-out posterior are p(x, h) / (q(h | x) p(x_i | h)): one factor corrects q, the other
    leaves the datum out. ArviZ ≥ 1 does it by `loo_approximate_posterior`; an older ArviZ smooths the weights.

    Raises:
        ValueError: if the model has more than one observed site, or its data are not independent given h.

    Reference: Magnusson, Andersen, Jonasson & Vehtari, "Bayesian leave-one-out cross-validation for large data" (2019).
    """
    args = as_args(x)
    with isolated(seed), torch.no_grad():
        chunks = list(draw_chunks(model, guide, args, draws=draws))
    names = list(chunks[0].pointwise)
    if len(names) != 1:
        raise ValueError(f"loo needs one observed site, but the model has {names}.")
    pointwise = torch.cat([chunk.pointwise[names[0]] for chunk in chunks]).double()
    if pointwise.dim() != 2:
        raise ValueError(
            f"the densities of site {names[0]!r} have shape {tuple(pointwise.shape[1:])} for each draw, but one for each "
            "datum is needed: loo is for data that are independent given h."
        )
    totals = [chunk.total for chunk in chunks]
    log_p = torch.cat([t.log_likelihood + t.log_prior for t in totals]).double()
    each, khat = leave_one_out(log_p, torch.cat([t.log_q for t in totals]).double(), pointwise)
    return LOO(float(each.sum()), float(each.std() * len(each) ** 0.5), each, khat)


def _latents(model: Any, guide: Any, args: tuple[Any, ...], draws: int) -> dict[str, Tensor]:
    chunks = list(draw_chunks(model, guide, args, draws=draws))
    return {name: torch.cat([chunk.h[name] for chunk in chunks]) for name in chunks[0].h}
