"""Chooses the number of threads for a step."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from math import prod
from typing import Any

import torch
from torch import fx

__all__ = ["fewest_for", "fixed_threads", "work"]

MIN_SHARED_WORK = 2_000_000
"""Operations of a step above which a second thread saves more time than waking it costs."""


def fewest_for(step: fx.GraphModule) -> int:
    """One thread for a small step, torch's number for a large one."""
    return torch.get_num_threads() if work(step) > MIN_SHARED_WORK else 1


def work(step: fx.GraphModule) -> int:
    """Floating-point operations of a step, roughly: all of a matrix product, one per result of any other operation."""
    return sum(_operations(node) for node in step.graph.nodes if node.op == "call_function")


def _operations(node: fx.Node) -> int:
    shape = _shape(node)
    if node.target in _PRODUCTS and shape is not None:
        inner = _shape(node.args[_PRODUCTS[node.target]])
        return 2 * prod(shape) * (1 if inner is None else inner[-1])
    return 0 if shape is None else prod(shape)


def _shape(node: Any) -> tuple[int, ...] | None:
    shape = getattr(node.meta.get("tensor_meta"), "shape", None) if isinstance(node, fx.Node) else None
    return None if shape is None else tuple(shape)


_PRODUCTS = {
    torch.ops.aten.mm.default: 0,
    torch.ops.aten.mv.default: 0,
    torch.ops.aten.bmm.default: 0,
    torch.ops.aten.addmm.default: 1,
    torch.ops.aten.baddbmm.default: 1,
    torch.ops.aten.convolution.default: 1,
}
"""The position of the argument whose last dimension is summed over."""


@contextmanager
def fixed_threads(count: int) -> Iterator[None]:
    """Sets torch's number of threads to `count`, and back on leaving."""
    before = torch.get_num_threads()
    try:
        if count != before:
            torch.set_num_threads(count)
        yield
    finally:
        if count != before:
            torch.set_num_threads(before)
