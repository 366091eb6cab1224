"""Plates that subsample by themselves, run on all their rows."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from pyro.poutine.subsample_messenger import SubsampleMessenger

__all__ = ["on_all_rows"]


def on_all_rows(program: Callable[..., Any]) -> Callable[..., Any]:
    """The program with all rows in every plate that would draw a part of them: ``plate(..., subsample_size=50)``.

    A plate that is given its rows, ``plate(..., subsample=rows)``, keeps them.
    """

    def whole(*args: Any, **kwargs: Any) -> Any:
        with _all_rows():
            return program(*args, **kwargs)

    return whole


@contextmanager
def _all_rows() -> Iterator[None]:
    """Pyro fixes the size of a plate before a handler sees it, so its choice of rows is replaced, in this thread alone."""
    chosen: Callable[..., Any] = SubsampleMessenger._subsample
    owner = threading.get_ident()

    def choose(
        name: str, size: Any = None, subsample_size: Any = None, subsample: Any = None, *args: Any, **kwargs: Any
    ) -> Any:
        if subsample is None and size is not None and threading.get_ident() == owner:
            subsample_size = None
        return chosen(name, size, subsample_size, subsample, *args, **kwargs)

    SubsampleMessenger._subsample = staticmethod(choose)  # type: ignore[assignment]
    try:
        yield
    finally:
        SubsampleMessenger._subsample = staticmethod(chosen)  # type: ignore[assignment]
