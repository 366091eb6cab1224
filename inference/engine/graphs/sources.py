"""Bounds the memory that torch keeps for captured graphs."""

from __future__ import annotations

import linecache
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch.fx.graph_module

__all__ = ["sources_forgotten"]


@contextmanager
def sources_forgotten() -> Iterator[None]:
    """Forgets the source text of the graphs that are made inside the context.

    torch keeps the text of every graph until the process ends, for tracebacks through it: some 100 kB for each fit.
    """
    kept: dict[Any, Any] = getattr(getattr(torch.fx.graph_module, "_loader", None), "eval_cache", {})
    before = set(kept)
    try:
        yield
    finally:
        for name in kept.keys() - before:
            del kept[name]
            linecache.cache.pop(name, None)
