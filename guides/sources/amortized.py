"""λ_i computed from x_i by an encoder."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor, nn

from ..encoders import MLP
from ..families import Family
from .base import Guide

__all__ = ["Amortized"]


class Amortized(Guide):
    """∏_i q_{λ(x_i)}(h_i), where λ(x_i) = encoder(x_i) + the family's start. It applies to unseen x too.

    If the model also has latents outside the data plate, each local block is conditioned on a draw of them: the encoder's
    input is (x_i, shared), flattened.

    Args:
        model: a Pyro program with latents inside the data plate, whose first argument is x.
        family: the shape of each q.
        encoder: a net (B, *data_shape) → (B, family.size), which the guide copies before it trains it, or a spec such as
            ``MLP((64,))`` that makes a net from the shape of x_i and the size of λ_i.
        plate: name of the model's data plate.
        shared: the family over the latents outside the data plate; by default `FullRank`.

    Raises:
        ValueError: on the first call, if the shape of the encoder's output is not (B, family.size).
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
        shared: Family | None = None,
    ) -> None:
        super().__init__(model, family, plate=plate, shared=shared)
        if not (encoder is None or callable(encoder)) or isinstance(encoder, type):
            raise TypeError(f"{type(self).__name__}: encoder must be a net or a spec such as MLP(), but is {encoder!r}.")
        self._spec = (MLP() if encoder is None else encoder,)

    def make_parameters(self, x: Tensor) -> None:
        assert self.latents is not None
        spec = self._spec[0]
        size = self.family.size
        x = self._input(x, self.shared_lam.new_zeros(self.shared.dim)) if self.shared is not None else x
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
        if self.shared is not None:
            x = self._input(x, self.q_shared().mean)
        lam: Tensor = self.encoder(x) + self.start
        return lam

    def q_given(self, x: Tensor, index: Tensor | None, shared: Tensor) -> TorchDistribution:
        return self.family(self.lambdas_given(x, index, shared))

    def lambdas_given(self, x: Tensor, index: Tensor | None, shared: Tensor) -> Tensor:
        lam: Tensor = self.encoder(self._input(x, shared)) + self.start
        return lam

    def _check_plate(self) -> None:
        if not self.holds_data:
            raise ValueError(
                f"{type(self).__name__} has an encoder, which needs a row of x for each λ, but the plate {self.plate!r} holds "
                "no data: use Local or Structured for groups that data point to."
            )

    def _input(self, x: Tensor, shared: Tensor) -> Tensor:
        """x_i and the shared latents, concatenated: shape (*, B, size of x_i + shared dim)."""
        flat = x.reshape(len(x), -1)
        shared = shared if shared.dim() > 1 else shared.unsqueeze(0)
        lead = (*shared.shape[:-2], len(x))
        return torch.cat([flat.expand(*lead, -1), shared.to(flat).expand(*lead, -1)], -1)
