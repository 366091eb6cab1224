"""A pair of model and guide, checked and run on all its data."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from pyro import poutine

from ..programs.isolation import isolated
from ..programs.validation import check_pair
from ..programs.whole_data import whole_data

__all__ = ["whole_pair"]


@contextmanager
def whole_pair(
    model: Callable[..., Any], guide: Callable[..., Any], args: tuple[Any, ...], *, seed: int, enumerated: bool = False
) -> Iterator[None]:
    """`isolated`, with all rows in plates that subsample by themselves, after `check_pair`.

    Raises:
        ValueError: if x is a minibatch of a plate with more rows: a bound needs all the data.
    """
    with isolated(seed):
        try:
            with whole_data():
                check_pair(model, guide, args, {}, enumerated=enumerated)
        except (RuntimeError, ValueError, IndexError, TypeError) as error:
            if plate := _subsampled(model, args):
                raise ValueError(
                    f"the model takes {plate[1]} of the {plate[2]} rows of the plate {plate[0]!r} and cannot be run on all of "
                    "them with this x; a bound on log p(x) needs all the data: pass x with all its rows, to a model that "
                    f"takes them. It says: {error}"
                ) from error
            raise
        with whole_data():
            yield


def _subsampled(model: Callable[..., Any], args: tuple[Any, ...]) -> tuple[str, int, int] | None:
    """Name, rows and full size of a plate that subsamples by itself."""
    try:
        with torch.random.fork_rng(), torch.no_grad(), poutine.block():
            nodes = poutine.trace(model).get_trace(*args).nodes.values()
    except Exception:  # whatever the model raises is reported by the caller
        return None
    frames = [frame for site in nodes if site["type"] == "sample" for frame in site["cond_indep_stack"]]
    return next(((f.name, f.size, f.full_size) for f in frames if f.full_size is not None and f.size < f.full_size), None)
