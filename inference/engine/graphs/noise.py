"""Draws the Gaussian noise of many steps before they are taken."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, fx

from ..errors import MappingError
from .loop_body import Packing
from .simplify import is_random

__all__ = ["Noise", "draws_of"]

aten = torch.ops.aten
TORCH_BLOCK = 16
"""torch draws a contiguous tensor of at least this many Gaussian numbers in blocks of this size, a smaller one singly."""


class Noise:
    """The standard Gaussian draws of a step, laid end to end in one vector for each dtype.

    Args:
        draws: empty tensors of the shapes and dtypes of a step's draws, in their order.
    """

    def __init__(self, draws: Sequence[Tensor]) -> None:
        self.packing = Packing(draws)
        self._single = len(draws) == 1
        sizes = [draw.numel() for draw in draws]
        alike = len(self.packing.groups) == 1
        self._small = alike and max(sizes) < TORCH_BLOCK
        self._whole = alike and all(size % TORCH_BLOCK == 0 for size in sizes)

    @property
    def numbers(self) -> int:
        """Random numbers of one step."""
        return sum(shape.numel() for shape in self.packing.shapes)

    def vectors(self, *steps: int) -> list[Tensor]:
        """Empty vectors, one for each dtype, of shape (*steps, numbers)."""
        return [torch.empty(*steps, sum(self.packing.sizes(dtype)), dtype=dtype) for dtype in self.packing.groups]

    def draw(self, steps: int) -> list[Tensor]:
        """Draws from the global generator the same numbers, bit by bit, as `steps` steps would one by one.

        Returns:
            One tensor (steps, numbers) for each dtype.
        """
        rows = self.vectors(steps)
        if self._small:
            # torch draws a strided tensor singly, like small ones: one call for all steps.
            return [rows[0].new_empty(rows[0].numel(), 2)[:, 0].normal_().view_as(rows[0])]
        if self._whole:
            return [rows[0].normal_()]
        for row in zip(*(vector.unbind(0) for vector in rows), strict=True):
            for part in row if self._single else self.packing.unpack(row):
                part.normal_()
        return rows


def draws_of(step: fx.GraphModule) -> list[fx.Node]:
    """The step's random operations, which must be standard Gaussian draws, in their order.

    Raises:
        MappingError: if there is another random operation.
    """
    nodes = [node for node in step.graph.nodes if node.op == "call_function" and is_random(node)]
    for node in nodes:
        settings = [node.kwargs.get(key, default) for key, default in (("mean", 0.0), ("std", 1.0), ("generator", None))]
        standard = settings == [0.0, 1.0, None] and tuple(node.args[1:]) in ((), (0.0, 1.0))
        if node.target not in _GAUSSIAN or not standard:
            raise MappingError(f"it draws by {node.target}, not standard Gaussian numbers alone")
    return nodes


_GAUSSIAN = {aten.normal_functional.default, aten.randn.default, aten.randn_like.default}
