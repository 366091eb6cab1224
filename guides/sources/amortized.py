"""λ_i computed from x_i by an encoder."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..encoders import MLP
from ..families import Family
from .base import Guide

__all__ = ["Amortized"]


class Amortized(Guide):
    """∏_i q_{λ(x_i)}(h_i), where λ(x_i) = encoder(x_i) + the family's start. Applies to x that it has not seen.

    Args:
        model: a Pyro program whose latents all lie inside the data plate and whose first argument is x.
        family: the shape of each q.
        encoder: a net from (B, *data_shape) to (B, family.size), of which the guide trains a copy, or a spec such as
            ``MLP((64,))`` that makes one from the shape of x_i and the size of λ_i.
        plate: name of the model's data plate.

    Raises:
        ValueError: on the first call, if the encoder's output is not (B, family.size).
    """

    local = True
    start: Tensor

    def __init__(
        self,
        model: Callable[..., Any],
        family: Family,
        encoder: nn.Module | Callable[[tuple[int, ...], int], nn.Module] | None = None,
        *,
        plate: str = "data",
    ) -> None:
        super().__init__(model, family, plate=plate)
        self._spec = (MLP() if encoder is None else encoder,)

    def make_parameters(self, x: Tensor) -> None:
        assert self.latents is not None
        spec = self._spec[0]
        size = self.family.size
        encoder = copy.deepcopy(spec) if isinstance(spec, nn.Module) else spec(tuple(x.shape[1:]), size)
        encoder.to(dtype=self.latents.dtype, device=x.device)
        with torch.no_grad():
            shape = tuple(copy.deepcopy(encoder).eval()(x[:1]).shape)
        if shape != (1, size):
            raise ValueError(
                f"the encoder maps one datum to shape {shape}, but (1, {size}) is needed: {type(self.family).__name__} "
                f"over R^{self.family.dim} has {size} numbers in λ."
            )
        self.register_buffer("start", self.family.start())
        self.encoder = encoder

    def lambdas(self, x: Tensor, index: Tensor | None = None) -> Tensor:
        if x.dtype != self.start.dtype:
            raise TypeError(f"this Amortized guide holds {self.start.dtype}, but x is {x.dtype}: convert one of them.")
        lam: Tensor = self.encoder(x) + self.start
        return lam
