"""One captured step for several fits at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import nan
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx

from .capture import CaptureError
from .noise import Noise, draws_of
from .simplify import simplify

__all__ = ["Batched", "Layout", "batched", "fits_along"]

aten = torch.ops.aten
FIRST, LAST = 0, -1


class Layout(NamedTuple):
    """How the states of several fits lie in joint tensors.

    Attributes:
        along: the dimension of the fits, the first or the last.
        own: whether each tensor of the state is a fit's own, or the same for all.
    """

    along: int
    own: list[bool]

    def joint(self, states: Sequence[Sequence[Tensor]]) -> list[Tensor]:
        """One tensor for all fits."""
        return [
            torch.stack(values, self.along) if own else values[0]
            for own, values in zip(self.own, zip(*states, strict=True), strict=True)
        ]

    def rows(self, own: Sequence[Sequence[Tensor]]) -> list[Tensor]:
        """One tensor for all fits of what has a row for each step."""
        among = 1 if self.along == 0 else self.along
        return [torch.stack(rows, among) for rows in zip(*own, strict=True)]

    def apart(self, state: Sequence[Tensor], fits: int) -> list[list[Tensor]]:
        """The reverse."""
        return [
            [value.select(self.along, k) if own else value for own, value in zip(self.own, state, strict=True)]
            for k in range(fits)
        ]


class Batched(NamedTuple):
    """A step of several fits.

    Attributes:
        step: a graph of (*state, rate, *data[, index][, *noise]) that returns the losses, shape (fits,), and the new state.
        noise: what the step draws, None if nothing; an input has the numbers of one dtype, for all fits.
    """

    step: fx.GraphModule
    noise: Noise | None


def fits_along(step: fx.GraphModule) -> int:
    """The dimension along which the fits lie: the last, where vectors are long, unless the step works on matrices."""
    return FIRST if any(_is_of_matrices(node) for node in step.graph.nodes) else LAST


def batched(
    step: fx.GraphModule, state: Sequence[Tensor], data: Sequence[Tensor], index: Tensor | None, *, own: Sequence[bool]
) -> Batched:
    """Maps a captured step over fits that differ in their state, their minibatch and their noise.

    Args:
        step: a graph of (*state, rate, *data[, index]).
        state: of all fits: a tensor that is a fit's own has them along the dimension `fits_along`.
        data: shared.
        index: of the minibatch of each fit, likewise.
        own: whether each tensor of the state is a fit's own, or the same for all.

    Raises:
        CaptureError: if the step draws other than Gaussian numbers, or does what cannot be mapped.
    """
    along = fits_along(step)
    flat, noise = _without_draws(step)
    fits = next(value.shape[along] for value, mine in zip(state, own, strict=True) if mine)
    rows = [] if noise is None else [vector.unsqueeze(along).repeat_interleave(fits, along) for vector in noise.vectors()]
    varying = [*([] if index is None else [index]), *rows]
    dims: tuple[Any, ...] = tuple(along if mine else None for mine in own)
    mapped = torch.vmap(flat, (*dims, None, *(None for _ in data), *(along for _ in varying)), (0, *dims))
    rate = torch.tensor(0.0, dtype=torch.float64)
    try:
        with _without_fallback():
            return Batched(simplify(make_fx(mapped)(*state, rate, *data, *varying)), noise)
    except Exception as error:
        raise CaptureError(f"it cannot be mapped over several fits: {str(error).strip().splitlines()[0]}") from error


def _without_draws(step: fx.GraphModule) -> tuple[fx.GraphModule, Noise | None]:
    """The step as a function of single tensors, the last its draws. A factorisation that fails makes its loss NaN."""
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
    """An operation that torch maps by repeating it for each fit gains nothing."""
    functorch: Any = torch._C._functorch
    before = functorch._is_vmap_fallback_enabled()
    functorch._set_vmap_fallback_enabled(False)
    try:
        yield
    finally:
        functorch._set_vmap_fallback_enabled(before)


def _is_of_matrices(node: fx.Node) -> bool:
    name = str(node.target)
    return node.op == "call_function" and any(word in name for word in _MATRICES)


_MATRICES = ("mm", "mv", "linalg", "cholesky", "triangular", "convolution")
"""In the names of operations that expect their matrices in the last two dimensions."""
