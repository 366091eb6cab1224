"""Maps one captured step over several fits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import nan
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx

from ..errors import MappingError
from .noise import Noise, draws_of
from .simplify import simplify
from .sources import sources_forgotten

__all__ = ["Layout", "MappedStep", "fits_along", "map_over_fits"]

aten = torch.ops.aten
FIRST, LAST = 0, -1


class Layout(NamedTuple):
    """The arrangement of the states of n fits in the tensors that a loop carries.

    Attributes:
        along: the dimension of the fits, the first or the last; None for a single fit, which has no such dimension.
        own: whether each tensor of the state differs from fit to fit.
    """

    along: int | None
    own: list[bool]

    def joint(self, states: Sequence[Sequence[Tensor]]) -> list[Tensor]:
        """Stacks the states of all fits, tensor by tensor."""
        along = self.along
        if along is None:
            return list(states[0])
        return [
            torch.stack(values, along) if own else values[0]
            for own, values in zip(self.own, zip(*states, strict=True), strict=True)
        ]

    def joint_rows(self, own: Sequence[Sequence[Tensor]]) -> list[Tensor]:
        """Stacks tensors of all fits that have one row for each step."""
        if self.along is None:
            return list(own[0])
        return [torch.stack(rows, 1 if self.along == FIRST else LAST) for rows in zip(*own, strict=True)]

    def split(self, joint: Sequence[Tensor], fits: int) -> list[list[Tensor]]:
        """Splits joint tensors into one state per fit."""
        along = self.along
        if along is None:
            return [list(joint)]
        return [
            [value.select(along, k) if own else value for own, value in zip(self.own, joint, strict=True)] for k in range(fits)
        ]


class MappedStep(NamedTuple):
    """A step of several fits.

    Attributes:
        step: a graph of (*state, rate, *data[, index][, *noise]) that returns the losses, shape (fits,), and the new state.
        noise: the Gaussian draws of a fit's step, None if there are none; `step` has one input for each of their dtypes.
    """

    step: fx.GraphModule
    noise: Noise | None


def fits_along(step: fx.GraphModule) -> int:
    """The dimension for the fits: the last, which gives long vectors, unless the step has operations on matrices."""
    return FIRST if any(_is_on_matrices(node) for node in step.graph.nodes) else LAST


def map_over_fits(
    step: fx.GraphModule, state: Sequence[Tensor], data: Sequence[Tensor], index: Tensor | None, layout: Layout
) -> MappedStep:
    """Maps a captured step over fits that differ in state, minibatch and noise.

    Args:
        step: a graph of (*state, rate, *data[, index]).
        state: the joint state.
        data: shared by the fits.
        index: the rows of each fit's minibatch, stacked along `layout.along`.
        layout: of the joint state; `along` is `fits_along(step)`.

    Raises:
        MappingError: if the step draws other than Gaussian numbers, or has an operation that cannot be mapped.
    """
    along, own = layout.along, layout.own
    assert along is not None
    flat, noise = _without_draws(step)
    fits = next(value.shape[along] for value, mine in zip(state, own, strict=True) if mine)
    rows = [] if noise is None else [vector.unsqueeze(along).repeat_interleave(fits, along) for vector in noise.vectors()]
    varying = [*([] if index is None else [index]), *rows]
    dims: tuple[Any, ...] = tuple(along if mine else None for mine in own)
    mapped = torch.vmap(flat, (*dims, None, *(None for _ in data), *(along for _ in varying)), (0, *dims))
    rate = torch.tensor(0.0, dtype=torch.float64)
    try:
        with _without_fallback(), sources_forgotten():
            return MappedStep(simplify(make_fx(mapped)(*state, rate, *data, *varying)), noise)
    except Exception as error:
        raise MappingError(f"it cannot be mapped over several fits: {str(error).strip().splitlines()[0]}") from error


def _without_draws(step: fx.GraphModule) -> tuple[fx.GraphModule, Noise | None]:
    """The step with its draws as the last inputs. A factorisation that fails makes its loss NaN."""
    nodes = draws_of(step)
    graph = fx.Graph()
    made = {node: graph.placeholder(node.name) for node in step.graph.nodes if node.op == "placeholder"}
    noise = None
    if nodes:
        noise = Noise([torch.empty(n.meta["tensor_meta"].shape, dtype=n.meta["tensor_meta"].dtype) for n in nodes])
        vectors = [graph.placeholder(f"noise_{k}") for k in range(len(noise.packing.groups))]
        made.update(zip(nodes, noise.packing.slices(graph, vectors), strict=True))
    failures = []
    for node in step.graph.nodes:
        if node.op == "get_attr":
            made[node] = graph.get_attr(node.target)
        elif node.target is aten._linalg_check_errors.default:
            failures.append(made[node.args[0]])
        elif node.op == "call_function" and node not in made:
            made[node] = graph.node_copy(node, made.__getitem__)
    returned: Any = step.graph.output_node().args[0]
    loss, *new = (made[node] for node in returned)
    for info in failures:
        right = graph.call_function(aten.all.default, (graph.call_function(aten.eq.Scalar, (info, 0)),))
        loss = graph.call_function(aten.where.ScalarOther, (right, loss, nan))
    graph.output((loss, *new))
    return fx.GraphModule(step, graph), noise


@contextmanager
def _without_fallback() -> Iterator[None]:
    """Raises where torch would map an operation by repeating it for each fit, which gains nothing."""
    functorch: Any = torch._C._functorch
    before = functorch._is_vmap_fallback_enabled()
    functorch._set_vmap_fallback_enabled(False)
    try:
        yield
    finally:
        functorch._set_vmap_fallback_enabled(before)


def _is_on_matrices(node: fx.Node) -> bool:
    name = str(node.target)
    return node.op == "call_function" and any(word in name for word in _MATRICES)


_MATRICES = ("mm", "mv", "linalg", "cholesky", "triangular", "convolution")
"""Parts of the names of operations that expect matrices in the last two dimensions."""
