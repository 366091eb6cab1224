"""An encoder of series that sees one step at a time."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["PerStep"]


class PerStep:
    """For a series x_i of T steps and a λ_i of c numbers for each step: λ_it is an affine function of x_it alone.

    Made for `models.StateSpace`, where it shows what an encoder that sees one datum at a time must miss. λ is taken as c
    runs of T numbers, as `MeanField` over R^T has it (locations, then scales). Calling it with the shape of x_i and the size
    of λ_i makes the net: (*, T) → (*, c T).

    Reference: Margossian & Blei, "Amortized variational inference: when and why?" (2024).
    """

    def __call__(self, shape: tuple[int, ...], size: int) -> nn.Module:
        if len(shape) != 1 or size % shape[0]:
            raise ValueError(
                f"PerStep needs a series of T numbers and a λ of c T, but x_i has shape {shape} and λ_i {size} numbers: use "
                "MeanField over one latent for each step."
            )
        return _PerStep(shape[0], size // shape[0])


class _PerStep(nn.Module):
    def __init__(self, steps: int, numbers: int) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.zeros(numbers, steps))
        self.offset = nn.Parameter(torch.zeros(numbers, steps))

    def forward(self, x: Tensor) -> Tensor:
        return (self.slope * x.unsqueeze(-2) + self.offset).flatten(-2)
