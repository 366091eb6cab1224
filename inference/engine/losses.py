"""Losses of the last steps of a fit, where steps may be taken again."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["Losses"]


class Losses:
    """Blocks of losses. A block that begins before the end of the last one replaces what it overlaps."""

    def __init__(self) -> None:
        self._blocks: list[tuple[int, Tensor]] = []

    def add(self, end: int, block: Tensor) -> None:
        """Adds the losses of the steps before step `end`, shape (steps, …)."""
        first = end - len(block)
        while self._blocks and self._blocks[-1][0] >= first:
            self._blocks.pop()
        if self._blocks:
            before, last = self._blocks[-1]
            self._blocks[-1] = before, last[: first - before]
        self._blocks.append((first, block))

    def since(self, step: int) -> Tensor:
        """The losses from `step` on; all if `step` comes before the first."""
        found: list[Tensor] = []
        for first, block in reversed(self._blocks):
            found.append(block[max(0, step - first) :])
            if first <= step:
                break
        return torch.cat(found[::-1])

    def clear(self) -> None:
        """Forgets all."""
        self._blocks.clear()
