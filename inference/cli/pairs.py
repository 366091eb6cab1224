"""Fits one model and guide for a command."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from guides import Local

from ..fitting.fit import Fit, fit
from ..programs.isolation import isolated

__all__ = ["fit_pair"]


def fit_pair(
    model: Any, factory: Callable[[Any], Any], x: Tensor, *, seed: int, local_in_full: bool = False, **options: Any
) -> Fit:
    """Fits the guide ``factory(model)`` with `options` of `fit`; `local_in_full` gives a `Local` guide no minibatches."""
    with isolated(seed):
        guide = factory(model)
    if isinstance(guide, Local) and local_in_full:
        options["batch_size"] = None
    return fit(model, guide, x, seed=seed, **options)
