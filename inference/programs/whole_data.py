"""Runs programs that draw their own minibatch on all their rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from pyro.poutine.subsample_messenger import SubsampleMessenger

__all__ = ["on_all_rows", "whole_data"]


@contextmanager
def whole_data() -> Iterator[None]:
    """Within it every plate that would draw a subsample of its rows, by ``subsample_size=…``, holds all of them at scale 1.

    The log density of a model that subsamples by itself is random, so a number computed from it describes one minibatch.
    Rows given by ``subsample=…`` were chosen by the caller and stay. The programs themselves are not changed.
    """
    original = vars(SubsampleMessenger)["_subsample"]

    def all_rows(name: str, size: Any = None, subsample_size: Any = None, subsample: Any = None, *rest: Any) -> Any:
        if size is not None and subsample is None:
            subsample_size = None
        return original.__func__(name, size, subsample_size, subsample, *rest)

    # A plate fixes its rows and its scale when it is made, before any handler of Pyro's can change both.
    SubsampleMessenger._subsample = staticmethod(all_rows)
    try:
        yield
    finally:
        SubsampleMessenger._subsample = original


def on_all_rows(program: Callable[..., Any]) -> Callable[..., Any]:
    """The program, each call of which is made within `whole_data`."""

    def whole(*args: Any, **kwargs: Any) -> Any:
        with whole_data():
            return program(*args, **kwargs)

    return whole
