"""A captured step as the body of a loop."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import nan, prod
from typing import Any

import torch
from torch import Tensor, fx

from ..errors import CaptureError, LoopError

__all__ = ["Loop", "Packing", "loop"]

aten = torch.ops.aten
VIEWS = {aten.view.default, aten._unsafe_view.default}
TRIANGLES = {aten.tril.default, aten.triu.default}
"""They compute row and column of each number, which keeps Inductor from vectorising the kernel that they are fused with."""


class Packing:
    """Lays tensors end to end in one vector for each dtype, since a loop is fast if it carries few tensors.

    Args:
        tensors: examples, for shapes, dtypes and order.
    """

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self.shapes = [tensor.shape for tensor in tensors]
        self.dtypes = [tensor.dtype for tensor in tensors]
        self.groups = list(dict.fromkeys(self.dtypes))

    def pack(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Returns one vector for each dtype."""
        return [torch.cat([t.detach().reshape(-1) for t in tensors if t.dtype == dtype]) for dtype in self.groups]

    def unpack(self, vectors: Sequence[Tensor]) -> list[Tensor]:
        """Views into the vectors, of the shapes and in the order of the examples."""
        parts = {dtype: iter(vector.split(self.sizes(dtype))) for dtype, vector in zip(self.groups, vectors, strict=True)}
        return [next(parts[dtype]).view(shape) for dtype, shape in zip(self.dtypes, self.shapes, strict=True)]

    def slices(self, graph: fx.Graph, vectors: Sequence[fx.Node]) -> list[fx.Node]:
        """`unpack` as nodes of a graph."""
        ends = dict.fromkeys(self.groups, 0)
        parts = []
        for dtype, shape in zip(self.dtypes, self.shapes, strict=True):
            begin, ends[dtype] = ends[dtype], ends[dtype] + shape.numel()
            part = graph.call_function(aten.slice.Tensor, (vectors[self.groups.index(dtype)], 0, begin, ends[dtype]))
            parts.append(graph.call_function(aten.view.default, (part, list(shape))))
        return parts

    def sizes(self, dtype: torch.dtype) -> list[int]:
        """The lengths of the parts of one vector."""
        return [shape.numel() for shape, own in zip(self.shapes, self.dtypes, strict=True) if own == dtype]


@dataclass(frozen=True)
class Loop:
    """The body of a loop over steps.

    Attributes:
        body: a function of (i, losses, *packed state, count, rates, *data, *constants) that returns (i, losses, *packed
            state) after step i. Losses, rates and the last of the data have one row for each step.
        constants: the last inputs.
        packing: the packing of the state.
        fits: the shape of a step's loss: () or (fits,).
    """

    body: Any
    constants: list[Tensor]
    packing: Packing
    fits: tuple[int, ...] = ()

    def inputs(
        self, length: int, state: Sequence[Tensor], rates: Sequence[float], data: Sequence[Tensor], rows: Sequence[Tensor]
    ) -> list[Tensor]:
        """The inputs of the body, with i = 0.

        Args:
            length: the largest number of steps of one call; tensors with one row for each step are padded to it with zeros.
            state: the tensors of the state.
            rates: the learning rate of each step.
            data: the data that is the same for all steps.
            rows: the data with one row for each step.
        """
        losses = torch.zeros(length, *self.fits, dtype=torch.float64)
        given = [_padded(row, length) for row in (torch.tensor(rates, dtype=torch.float64), *rows)]
        count = torch.tensor(len(rates))
        return [torch.tensor(0), losses, *self.packing.pack(state), count, given[0], *data, *given[1:], *self.constants]

    def coarsest(self, data: Sequence[Tensor]) -> torch.dtype:
        """The dtype with the largest rounding error among those that a step computes in."""
        dtypes = [*self.packing.dtypes, *(value.dtype for value in data)]
        return max((dtype for dtype in dtypes if dtype.is_floating_point), key=lambda dtype: torch.finfo(dtype).eps)

    def run(self, inputs: list[Tensor]) -> list[Tensor]:
        """Runs `count` steps operation by operation, without compiled code, and returns the carried tensors."""
        border = 2 + len(self.packing.groups)
        carried, rest = inputs[:border], inputs[border:]
        for _ in range(int(rest[0])):
            carried = list(self.body(*carried, *rest))
        return carried


def loop(step: fx.GraphModule, state: Sequence[Tensor], data: int, *, by_step: int) -> Loop:
    """Turns a step of (*state, rate, *data) into the body of a loop.

    Args:
        step: a graph that returns the loss, or the losses of several fits, and the new state.
        state: an example of the state.
        data: number of tensors of data.
        by_step: number of these, the last ones, that differ from step to step, such as a minibatch's row numbers.

    Raises:
        LoopError: if the optimiser's state grows.
        CaptureError: if the step would change the type of its state, so that it cannot be repeated.
    """
    packing = Packing(state)
    graph = fx.Graph()
    given = [node for node in step.graph.nodes if node.op == "placeholder"]
    made: dict[fx.Node, fx.Node] = {}
    i, losses = graph.placeholder("i"), graph.placeholder("losses")
    vectors = [graph.placeholder(f"state_{k}") for k in range(len(packing.groups))]
    graph.placeholder("count")
    rates = graph.placeholder("rates")
    inputs = [graph.placeholder(f"data_{k}") for k in range(data)]
    kept = {n: getattr(step, n.target) for n in step.graph.nodes if n.op == "get_attr"}
    constants = {n: value for n, value in kept.items() if not _is_uniform(value)}
    made.update({n: graph.placeholder(f"constant_{k}") for k, n in enumerate(constants)})

    here = graph.call_function(aten.reshape.default, (i, [1]))
    made.update(zip(given, packing.slices(graph, vectors), strict=False))
    rate, *arguments = given[len(state) :]
    made[rate] = _row(graph, rates, here, [])
    made.update(zip(arguments, inputs, strict=True))
    for node, rows in list(zip(arguments, inputs, strict=True))[data - by_step :]:
        made[node] = _row(graph, rows, here, list(node.meta["tensor_meta"].shape))
    made.update({n: _filled(graph, i, kept[n]) for n in kept if n not in made})
    failures = _copy(step.graph, graph, made)
    returned: Any = step.graph.output_node().args[0]
    loss, *new = returned
    _require_same_state(new, packing, given)
    for info in failures:
        # Compiled code raises nothing: a matrix that cannot be factorised makes the loss NaN.
        wrong = graph.call_function(aten.any.default, (graph.call_function(aten.ne.Scalar, (info, 0)),))
        poison = graph.call_function(aten.new_full.default, (made[loss], [], nan))
        made[loss] = graph.call_function(aten.where.self, (wrong, poison, made[loss]))
    flat = [graph.call_function(aten.reshape.default, (made[node], [-1])) for node in new]
    packed = []
    for dtype in packing.groups:
        own = [node for node, kind in zip(flat, packing.dtypes, strict=True) if kind == dtype]
        packed.append(graph.call_function(aten.cat.default, (own,)))
    fits = tuple(getattr(loss.meta.get("tensor_meta"), "shape", ()))
    value = graph.call_function(aten.reshape.default, (made[loss], [1, *fits]))
    value = graph.call_function(torch.ops.prims.convert_element_type.default, (value, torch.float64))
    graph.output(
        (
            graph.call_function(aten.add.Tensor, (i, 1)),
            graph.call_function(aten.index_put.default, (losses, [here], value)),
            *packed,
        )
    )
    return Loop(fx.GraphModule(torch.nn.Module(), graph), list(constants.values()), packing, fits)


def _padded(rows: Tensor, length: int) -> Tensor:
    if len(rows) == length:
        return rows.contiguous()
    whole = rows.new_zeros(length, *rows.shape[1:])
    whole[: len(rows)] = rows
    return whole


def _filled(graph: fx.Graph, like: fx.Node, value: Tensor) -> fx.Node:
    """A constant tensor of equal numbers, as an operation that can be fused."""
    fill = (like, list(value.shape), value.detach().reshape(-1)[0].item())
    return graph.call_function(aten.new_full.default, fill, {"dtype": value.dtype})


def _copy(source: fx.Graph, graph: fx.Graph, made: dict[fx.Node, fx.Node]) -> list[fx.Node]:
    """Copies the operations and returns the error codes of factorisations."""
    failures = []
    for node in source.nodes:
        if node.target is aten.clone.default:
            made[node] = made[node.all_input_nodes[0]]
        elif node.target is aten._linalg_check_errors.default:
            failures.append(made[node.all_input_nodes[0]])
        elif node.op == "call_function":
            made[node] = graph.node_copy(node, made.__getitem__)
            if node.target in VIEWS:
                # An input or a constant may have other strides here than where the step was captured.
                made[node].target = aten.reshape.default
            if node.target in TRIANGLES or _is_broadcast_scalar(node):
                made[node] = _unfused(graph, made[node], list(node.meta["tensor_meta"].shape))
    return failures


def _require_same_state(new: Sequence[fx.Node], packing: Packing, given: Sequence[fx.Node]) -> None:
    if len(new) != len(packing.shapes):
        raise LoopError("the optimiser keeps more after a step than before it")
    for node, shape, dtype in zip(new, packing.shapes, packing.dtypes, strict=True):
        meta = node.meta.get("tensor_meta")
        if node not in given and meta is not None and (meta.shape, meta.dtype) != (shape, dtype):
            raise CaptureError("a step changes the shape or dtype of a parameter or of the optimiser's state")


def _row(graph: fx.Graph, rows: fx.Node, here: fx.Node, shape: list[int]) -> fx.Node:
    return _unfused(graph, graph.call_function(aten.index_select.default, (rows, 0, here)), shape)


def _unfused(graph: fx.Graph, node: fx.Node, shape: list[int]) -> fx.Node:
    """A view that Inductor does not fuse across, so that `node` is read from memory and not computed at each use."""
    strides = [prod(shape[k + 1 :]) for k in range(len(shape))]
    return graph.call_function(aten.as_strided.default, (node, shape, strides))


def _is_broadcast_scalar(node: fx.Node) -> bool:
    """Whether the node computes one number, such as Adam's bias correction, that is broadcast over a larger tensor."""

    def size(node: fx.Node) -> int:
        meta = node.meta.get("tensor_meta")
        return 1 if meta is None else meta.shape.numel()

    pointwise = torch.Tag.pointwise in getattr(node.target, "tags", ())
    return pointwise and size(node) == 1 and any(size(user) > 1 for user in node.users)


def _is_uniform(value: Tensor) -> bool:
    return value.numel() > 0 and bool((value == value.reshape(-1)[0]).all())
