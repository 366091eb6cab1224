"""An encoder for series that sees one step at a time."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["PerStep"]


class PerStep:
    """Spec of an encoder for a series x_i of T steps, in which λ_it is an affine function of x_it alone.

    λ_i has c numbers for each step, in c runs of T, as in `MeanField` over R^T (locations, then scales). On
    `models.StateSpace` this encoder shows the amortization gap of seeing one step at a time. A call with the shape of x_i
    and the size of λ_i makes the net (*, T) → (*, c T).

    Raises:
        ValueError: in a call, unless x_i is a vector and the size of λ_i a multiple of its length.

    Reference: Margossian & Blei, "Amortized variational inference: when and why?" (2024).
    """

    def __call__(self, shape: tuple[int, ...], size: int) -> nn.Module:
        if len(shape) != 1 or size % shape[0]:
            raise ValueError(
                f"PerStep needs a series of T numbers and a λ_i of c T, but x_i has shape {shape} and λ_i {size} numbers: use "
                "MeanField on a model with one latent for each step."
            )
        return _PerStep(shape[0], size // shape[0])


class _PerStep(nn.Module):
    def __init__(self, steps: int, numbers: int) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.zeros(numbers, steps))
        self.offset = nn.Parameter(torch.zeros(numbers, steps))

    def forward(self, x: Tensor) -> Tensor:
        return (self.slope * x.unsqueeze(-2) + self.offset).flatten(-2)
