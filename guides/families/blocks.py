"""A Gaussian whose covariance is block diagonal."""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor

from ..arguments import counts
from .full_rank import FullRank

__all__ = ["Blocks"]


class Blocks(FullRank):
    """A Gaussian whose coordinates are correlated within blocks and independent between them.

    `MeanField` is the case of blocks of one coordinate, `FullRank` that of one block. λ is FullRank's without the entries
    between blocks.

    Args:
        sizes: number of consecutive coordinates in each block; they must add up to dim.
        scale: standard deviation of q at the start of a fit.

    Raises:
        ValueError: if a size is not positive; in `over`, if the sizes do not add up to dim.
    """

    def __init__(self, *sizes: int, scale: float = 0.1) -> None:
        super().__init__(scale=scale)
        self.sizes = counts("Blocks: sizes", sizes)

    @classmethod
    def demo(cls, dim: int) -> Self:
        return cls(*(size for size in (dim - dim // 2, dim // 2) if size))

    def over(self, dim: int) -> Self:
        if sum(self.sizes) != dim:
            raise ValueError(f"Blocks: sizes {self.sizes} add up to {sum(self.sizes)}, but the latents have {dim} dimensions.")
        return super().over(dim)

    def blocks(self) -> list[list[int]]:
        ends = torch.tensor(self.sizes).cumsum(0).tolist()
        return [list(range(end - size, end)) for size, end in zip(self.sizes, ends, strict=True)]

    def _below(self, device: torch.device) -> Tensor:
        pairs = [(row, column) for block in self.blocks() for row in block for column in block if column < row]
        return torch.tensor(pairs, dtype=torch.int64, device=device).reshape(-1, 2).mT
