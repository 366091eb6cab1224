"""Objectives that average the losses of single pairs of traces."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch

from ..programs.traced_pairs import Pair, Program, traced_pairs
from .base import FromDraws, Loss

__all__ = ["Averaged"]


class Averaged(FromDraws, ABC):
    """The mean over `draws` draws of a loss that is computed for each pair of traces, with gradients through the draws."""

    def __call__(self, model: Program, guide: Program, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Loss:
        losses = [self.loss(pair) for pair in traced_pairs(model, guide, args, kwargs, draws=self.draws)]
        value, surrogate = (torch.stack(parts).sum() / self.draws for parts in zip(*losses, strict=True))
        return Loss(value, surrogate)

    @abstractmethod
    def loss(self, pair: Pair) -> Loss:
        """The loss of one pair: of a single draw, or the sum over all draws if the pair holds them in a plate."""
