"""The Gaussian draws of many steps, made before the steps are taken."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, fx

from .capture import CaptureError
from .loop_body import Packing
from .simplify import is_random

__all__ = ["Noise", "draws_of"]

aten = torch.ops.aten
FILLED_TOGETHER = 16
"""torch fills so many numbers of a contiguous tensor at a time, and smaller tensors number by number."""


class Noise:
    """Standard Gaussian numbers of a step, laid end to end in one vector for each dtype.

    Args:
        draws: empty tensors of the shapes and dtypes of a step's draws, in their order.
    """

    def __init__(self, draws: Sequence[Tensor]) -> None:
        self.packing = Packing(draws)
        self._single = len(draws) == 1
        sizes = [draw.numel() for draw in draws]
        alike = len(self.packing.groups) == 1
        self._small = alike and max(sizes) < FILLED_TOGETHER
        self._whole = alike and all(size % FILLED_TOGETHER == 0 for size in sizes)

    @property
    def numbers(self) -> int:
        """Of a step."""
        return sum(shape.numel() for shape in self.packing.shapes)

    def vectors(self, *steps: int) -> list[Tensor]:
        """Empty ones for a step, or for several: shape (*steps, numbers)."""
        return [torch.empty(*steps, sum(self.packing.sizes(dtype)), dtype=dtype) for dtype in self.packing.groups]

    def draw(self, steps: int) -> list[Tensor]:
        """Draws from the global generator what so many steps would, in their order, to the last bit.

        Returns:
            One tensor (steps, numbers) for each dtype.
        """
        rows = self.vectors(steps)
        if self._small:
            # A tensor with gaps is filled number by number, as small ones are.
            return [rows[0].new_empty(rows[0].numel(), 2)[:, 0].normal_().view_as(rows[0])]
        if self._whole:
            return [rows[0].normal_()]
        for row in zip(*(vector.unbind(0) for vector in rows), strict=True):
            for part in row if self._single else self.packing.unpack(row):
                part.normal_()
        return rows


def draws_of(step: fx.GraphModule) -> list[fx.Node]:
    """The nodes that draw standard Gaussian numbers, in their order.

    Raises:
        CaptureError: if the step draws anything else.
    """
    nodes = [node for node in step.graph.nodes if node.op == "call_function" and is_random(node)]
    for node in nodes:
        settings = (
            tuple(node.args[1:]),
            node.kwargs.get("mean", 0.0),
            node.kwargs.get("std", 1.0),
            node.kwargs.get("generator"),
        )
        if node.target not in _GAUSSIAN or settings not in (((), 0.0, 1.0, None), ((0.0, 1.0), 0.0, 1.0, None)):
            raise CaptureError(f"it draws by {node.target}, not standard Gaussian numbers alone")
    return nodes


_GAUSSIAN = {aten.normal_functional.default, aten.randn.default, aten.randn_like.default}
