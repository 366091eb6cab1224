"""One λ for all the data."""

from __future__ import annotations

import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor

from .base import Guide

__all__ = ["Global"]


class Global(Guide):
    """q_λ(h) with one λ for all the data, over all latents of the model at once.

    Args:
        model: any Pyro program with continuous latents.
        family: the shape of q.
        plate: name of the model's data plate.
    """

    local = False
    lam: Tensor

    def make_parameters(self, x: Tensor) -> None:
        self.lam = torch.nn.Parameter(self.family.start())

    def lambdas(self, x: Tensor | None = None, index: Tensor | None = None) -> Tensor:
        return self.lam

    def q(self, x: Tensor | None = None, index: Tensor | None = None) -> TorchDistribution:
        return self.family(self.lam)
