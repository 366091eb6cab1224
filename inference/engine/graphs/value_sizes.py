"""Finds operations whose results have a size that depends on the values of their inputs, such as boolean masks."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import fx

from .simplify import is_random

__all__ = ["sized_by_values"]


def sized_by_values(graph: fx.Graph, fixed: Collection[int] = ()) -> fx.Node | None:
    """The first operation whose result may have another size at another step; None if there is none.

    A graph that was captured for one size computes with wrong rows, or fails, once there is another one.

    Args:
        graph: a captured step.
        fixed: the positions of inputs that have the same values at each step.
    """
    varying: set[fx.Node] = set()
    inputs = 0
    for node in graph.nodes:
        if node.op == "placeholder":
            varying |= set() if inputs in fixed else {node}
            inputs += 1
        elif is_random(node) or not varying.isdisjoint(node.all_input_nodes):
            varying.add(node)
            if _is_sized_by_values(node):
                return node
    return None


def _is_sized_by_values(node: fx.Node) -> bool:
    if torch.Tag.dynamic_output_shape not in getattr(node.target, "tags", ()):
        return False
    if node.target is not torch.ops.aten.index.Tensor:
        return True
    # Row numbers give a result of their own shape; a mask one of as many rows as it has ones.
    rows = node.all_input_nodes[1:]
    return any(_dtype(index) in (torch.bool, torch.uint8) for index in rows)


def _dtype(node: fx.Node) -> torch.dtype | None:
    if node.op == "get_attr":
        dtype: torch.dtype = getattr(node.graph.owning_module, str(node.target)).dtype
        return dtype
    return getattr(node.meta.get("tensor_meta"), "dtype", None)
