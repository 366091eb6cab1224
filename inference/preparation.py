"""What is done to model and guide before a fit's first step, and undone after its last."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pyro
from pyro import poutine
from torch import Tensor

from .batches import Batch
from .checks import check_pair
from .engine.eager import adopt
from .row_optimiser import RowOptimiser

__all__ = ["gradients_restored", "learned", "own_nan_check"]


def learned(
    model: Callable[..., Any], guide: Callable[..., Any], batch: Batch, rows: RowOptimiser, *, enumerated: bool
) -> tuple[list[Tensor], tuple[set[str], set[str]]]:
    """The tensors to optimise: each once, the rows of a local table in place of the table. Checks the pair on the way."""
    with rows, poutine.trace(param_only=True) as used:
        names = check_pair(model, guide, batch.args, batch.kwargs, enumerated=enumerated)
    parameters: list[Tensor] = list(rows.leaves.values())
    adopt(used.trace, parameters, rows.leaves)
    if not parameters:
        raise ValueError("neither the model nor the guide has a parameter to learn, so there is nothing to fit.")
    return parameters, names


@contextmanager
def gradients_restored(parameters: list[Tensor]) -> Iterator[None]:
    """Starts without gradients and leaves those that were there before."""
    before = {id(parameter): parameter.grad for parameter in parameters}
    try:
        for parameter in parameters:
            parameter.grad = None
        yield
    finally:
        for parameter in parameters:
            parameter.grad = before.get(id(parameter))


@contextmanager
def own_nan_check() -> Iterator[None]:
    """Leaves NaN to `fit`, which stops at it and names the site: Pyro would raise without the step, or only warn."""
    with pyro.validation_enabled(False), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Encountered NaN", UserWarning)
        yield
