"""Fits one model and guide for a command, and restricts the fitted guide to the first rows of the data."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from guides import Amortized, Guide, Local

from ..evidence.blocks import with_table
from ..fitting.fit import Fit, fit
from ..programs.bound import unwrap
from ..programs.isolation import isolated

__all__ = ["first_rows", "fit_pair"]


def fit_pair(
    model: Any, factory: Callable[[Any], Any], x: Tensor, *, seed: int, local_in_full: bool = False, **options: Any
) -> Fit:
    """Fits the guide ``factory(model)`` with `options` of `fit`; `local_in_full` gives a `Local` guide no minibatches."""
    with isolated(seed):
        guide = factory(model)
    if isinstance(guide, Local) and local_in_full:
        options["batch_size"] = None
    return fit(model, guide, x, seed=seed, **options)


def first_rows(fitted: Fit, x: Tensor, rows: int) -> tuple[Any, Tensor]:
    """A guide for the first `rows` rows of x, with those rows. A guide that is not local needs, and gets, all of x."""
    guide = unwrap(fitted.guide)
    if not isinstance(guide, Guide) or not guide.local:
        return fitted.guide, x
    if isinstance(guide, Amortized):
        return guide, x[:rows]
    with torch.no_grad():
        return with_table(guide, guide.lambdas(x)[:rows], (x[:rows],)), x[:rows]
