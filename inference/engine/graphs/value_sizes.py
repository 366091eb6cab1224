"""Finds operations whose results have a size that depends on the values of their inputs, such as boolean masks."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import fx

from .simplify import is_random

__all__ = ["sized_by_values"]

aten = torch.ops.aten


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
            if inputs not in fixed:
                varying.add(node)
            inputs += 1
            continue
        if not varying.isdisjoint(_deciding(node)):
            return node
        if is_random(node) or not varying.isdisjoint(node.all_input_nodes):
            varying.add(node)
    return None


def _deciding(node: fx.Node) -> list[fx.Node]:
    """The inputs whose values decide on the size of the result."""
    if torch.Tag.dynamic_output_shape not in getattr(node.target, "tags", ()):
        return []
    inputs = node.all_input_nodes
    if node.target is aten.masked_select.default:
        return inputs[1:]
    if node.target is aten.index.Tensor:
        # Row numbers give a result of their own shape; a mask one of as many rows as it has ones.
        return [index for index in inputs[1:] if _dtype(index) in (torch.bool, torch.uint8)]
    return inputs


def _dtype(node: fx.Node) -> torch.dtype | None:
    if node.op == "get_attr":
        dtype: torch.dtype = getattr(node.graph.owning_module, str(node.target)).dtype
        return dtype
    return getattr(node.meta.get("tensor_meta"), "dtype", None)
