"""Makes a captured graph smaller without changing its results."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

__all__ = ["simplify"]

aten = torch.ops.aten

NO_OPS = {aten.detach.default, aten.detach_copy.default, aten.alias.default, aten.lift_fresh_copy.default}
RESHAPES = {aten.view.default, aten._unsafe_view.default, aten.reshape.default, aten.expand.default, aten.permute.default}
FILLS = {aten.zeros_like.default, aten.ones_like.default, aten.full_like.default}
UNSET = {aten.empty.memory_format, aten.empty_like.default, aten.new_empty.default, aten.empty_strided.default}
"""Uninitialised memory, which is written before it is read. Set to zero, it makes equal graphs of equal programs."""
MAX_CONSTANT = 1 << 20
"""Numbers in the largest constant that is kept; larger ones are computed at each step."""


def simplify(module: fx.GraphModule) -> fx.GraphModule:
    """Removes no-ops, computes operations on constants once, and merges equal operations.

    Random operations stay, in their order, so that the graph draws the same numbers as the program.
    """
    module.graph.eliminate_dead_code(is_impure_node=_is_impure)
    _remove_no_ops(module.graph)
    _fold_constants(module)
    _merge_equal(module)
    module.graph.eliminate_dead_code(is_impure_node=_is_impure)
    module.delete_all_unused_submodules()
    module.recompile()
    return module


def is_random(node: fx.Node) -> bool:
    """Whether the operation draws from a random generator."""
    return torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())


def is_check(node: fx.Node) -> bool:
    """Whether the operation returns nothing and only raises errors."""
    schema = getattr(node.target, "_schema", None)
    return schema is not None and not schema.returns


def _is_impure(node: fx.Node) -> bool:
    return node.op in ("placeholder", "output") or is_random(node) or is_check(node)


def _remove_no_ops(graph: fx.Graph) -> None:
    for node in list(graph.nodes):
        same_layout = node.target in RESHAPES and _layout(node) == _layout(node.args[0])
        first_power = node.target is aten.pow.Tensor_Scalar and node.args[1] == 1
        if node.target in NO_OPS or same_layout or first_power:
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)


def _layout(node: fx.Node) -> Any:
    """Shape and strides of an operation's result when it was captured."""
    meta = node.meta.get("tensor_meta")
    return node if meta is None else (meta.shape, meta.stride)


def _fold_constants(module: fx.GraphModule) -> None:
    """Runs the operations on constants, and keeps their results as constants."""
    values: dict[fx.Node, Any] = {}
    count = 0
    for node in list(module.graph.nodes):
        if node.op == "get_attr":
            values[node] = getattr(module, node.target).detach()
        elif node.op == "call_function" and _is_constant(node, values):
            args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: values[n] if n in values else _blank(n))
            value = node.target(*args, **kwargs)
            if not isinstance(value, Tensor):
                # An operation with several results: its getitem nodes become the constants.
                values[node] = value
                continue
            if value.numel() > MAX_CONSTANT:
                continue
            if node.target in UNSET:
                value.zero_()
            name = f"constant_{count}"
            count += 1
            module.register_buffer(name, value.detach().contiguous(), persistent=False)
            with module.graph.inserting_before(node):
                constant = module.graph.get_attr(name)
            values[constant] = values[node] = value
            node.replace_all_uses_with(constant)
            module.graph.erase_node(node)


def _is_constant(node: fx.Node, values: dict[fx.Node, Any]) -> bool:
    """Whether a result depends on constants alone; a fill depends only on its input's shape."""
    if node.target in FILLS:
        return "tensor_meta" in node.all_input_nodes[0].meta
    return not is_random(node) and not is_check(node) and all(n in values for n in node.all_input_nodes)


def _blank(node: fx.Node) -> Tensor:
    meta = node.meta["tensor_meta"]
    return torch.empty_strided(meta.shape, meta.stride, dtype=meta.dtype)


def _merge_equal(module: fx.GraphModule) -> None:
    """Merges common subexpressions, and constants with equal values."""
    seen: dict[Any, fx.Node] = {}
    for node in list(module.graph.nodes):
        if node.op == "get_attr":
            value = getattr(module, node.target)
            small = value.numel() <= MAX_CONSTANT
            content = (value.shape, value.dtype, value.device, value.detach().cpu().numpy().tobytes()) if small else ()
            key: Any = content or node
        elif node.op == "call_function" and not is_random(node) and not is_check(node):
            key = (node.target, _frozen(node.args), _frozen(node.kwargs))
        else:
            continue
        if key in seen:
            node.replace_all_uses_with(seen[key])
            module.graph.erase_node(node)
        else:
            seen[key] = node


def _frozen(value: Any) -> Any:
    """A hashable key that distinguishes 1, 1.0 and True."""
    if isinstance(value, (list, tuple)):
        return (type(value).__name__, *map(_frozen, value))
    if isinstance(value, dict):
        return tuple((key, _frozen(item)) for key, item in value.items())
    return value if isinstance(value, fx.Node) else (type(value).__name__, str(value))
