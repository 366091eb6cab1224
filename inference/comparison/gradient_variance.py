"""Bias, variance and cost of gradient estimators at one λ."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from math import nan, sqrt
from typing import Any

import pandas as pd
import torch
from pyro import poutine
from torch import Tensor

from models import Tractable

from ..elbos.closed_form import analytic_elbo
from ..objectives import Loss, Objective
from ..objectives.base import as_loss
from ..programs.arguments import checked
from ..programs.bound import unwrap
from ..programs.isolation import isolated
from ..programs.validation import as_args, check_count, check_data, check_pair

__all__ = ["Estimator", "GradientVariance", "gradient_variance"]

MIN_DRAWS = 3
"""For a standard error of the squared bias."""


@dataclass(frozen=True)
class Estimator:
    """One objective's gradient estimate at one λ, over all parameters of guide and model.

    Variance and squared bias are in squared nats per squared unit of λ.
    """

    objective: str
    variance: float
    """Trace of the covariance of one estimate."""
    squared_bias: float
    """‖E[estimate] − exact gradient of −ELBO‖², estimated without bias, so it can be negative; NaN if no closed form is known
    or the objective's target is not the ELBO."""
    squared_bias_se: float
    """Standard error of `squared_bias`."""
    seconds: float
    """Median wall time of one estimate."""

    @property
    def variance_seconds(self) -> float:
        """Variance of one estimate × its time: the variance of the average over one second of estimates."""
        return self.variance * self.seconds


@dataclass(frozen=True)
class GradientVariance:
    """A comparison of gradient estimators at one λ."""

    estimators: tuple[Estimator, ...]
    draws: int
    """Independent estimates of each objective."""

    def to_frame(self) -> pd.DataFrame:
        """One row for each objective."""
        rows = [{**vars(row), "variance_seconds": row.variance_seconds} for row in self.estimators]
        return pd.DataFrame(rows)


@checked
def gradient_variance(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    objectives: Mapping[str, Objective],
    x: Tensor | tuple[Any, ...],
    *,
    draws: int = 200,
    seed: int = 0,
) -> GradientVariance:
    """Measures each objective's gradient estimate at the guide's present λ. Changes neither parameters nor global state.

    The bias needs the exact gradient, that of `analytic_elbo`: for a `models.Tractable` model and a guide with a Gaussian q.

    Args:
        model, guide: as for `fit`.
        objectives: name -> objective.
        x: the data, or a tuple of the model's arguments.
        draws: independent estimates for each objective, at least 3.
        seed: fixes the draws.

    Raises:
        TypeError, ValueError: for bad input, or an objective that does not apply to this pair, before any measurement.
    """
    args = as_args(x)
    check_count(draws=draws, least=MIN_DRAWS)
    if not objectives:
        raise ValueError("no objectives to measure: pass at least one name -> objective.")
    check_data(model, args)
    with isolated(seed):
        parameters = _parameters(model, guide, args)
        exact = _exact(model, guide, args, parameters)
        for objective in objectives.values():
            objective(model, guide, args, {})
        estimators = []
        for name, objective in objectives.items():
            estimates, seconds = _estimates(partial(objective, model, guide, args, {}), parameters, draws)
            truth = exact if objective.estimates_elbo else None
            squared, se = (nan, nan) if truth is None else _squared_mean(estimates - truth)
            estimators.append(Estimator(name, float(estimates.var(0).sum()), squared, se, seconds))
    return GradientVariance(tuple(estimators), draws)


def _parameters(model: Callable[..., Any], guide: Callable[..., Any], args: tuple[Any, ...]) -> list[Tensor]:
    with poutine.trace(param_only=True) as used:
        check_pair(model, guide, args, {})
    values = [site["value"].unconstrained() for site in used.trace.nodes.values() if site["type"] == "param"]
    parameters = list({id(value): value for value in values if value.requires_grad}.values())
    if not parameters:
        raise ValueError("neither the model nor the guide has a parameter, so there is no gradient to measure.")
    return parameters


def _exact(
    model: Callable[..., Any], guide: Callable[..., Any], args: tuple[Any, ...], parameters: list[Tensor]
) -> Tensor | None:
    """The exact gradient of −ELBO, float64; None if it has no closed form."""
    own = unwrap(guide)
    if not (isinstance(model, Tractable) and hasattr(own, "q")):
        return None
    try:
        nelbo = -analytic_elbo(model, own.q(args[0]), args[0]).sum()
    except (TypeError, NotImplementedError):
        return None
    return _gradient(nelbo, parameters)


def _estimates(estimate: Callable[[], Loss], parameters: list[Tensor], draws: int) -> tuple[Tensor, float]:
    """Independent gradients, shape (draws, parameters), and the median time of one."""
    found, seconds = [], []
    for _ in range(draws):
        begin = time.perf_counter()
        found.append(_gradient(as_loss(estimate()).surrogate, parameters))
        seconds.append(time.perf_counter() - begin)
    return torch.stack(found), float(torch.tensor(seconds).median())


def _gradient(surrogate: Tensor, parameters: list[Tensor]) -> Tensor:
    gradients = torch.autograd.grad(surrogate, parameters, allow_unused=True)
    pairs = zip(parameters, gradients, strict=True)
    return torch.cat([(torch.zeros_like(p) if g is None else g).reshape(-1) for p, g in pairs]).double()


def _squared_mean(errors: Tensor) -> tuple[float, float]:
    """‖E[e]‖² of i.i.d. rows e, shape (D, P), by the mean of e_i · e_j over i ≠ j, and its standard error.

    The variance of this U-statistic is 4 mᵀCm / D + 2 tr(C²) / (D (D − 1)), with m and C the mean and covariance of e.

    Reference: Hoeffding, "A class of statistics with asymptotically normal distribution" (1948), equation 5.13.
    """
    draws = len(errors)
    pairs = draws * (draws - 1)
    gram = errors @ errors.mT
    squared = float((gram.sum() - gram.trace()) / pairs)
    mean = errors.mean(0)
    centred = errors - mean
    products = (centred @ centred.mT).square()
    spread = float((products.sum() - products.trace()) / pairs)
    # The estimated mean has covariance C / D, which adds tr(C²) / D to mᵀCm on average.
    along = max(0.0, float((centred @ mean).var()) - spread / draws)
    return squared, sqrt(4 * along / draws + 2 * spread / pairs)
