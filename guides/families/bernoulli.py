"""Independent coin flips, for binary latents."""

from __future__ import annotations

from typing import ClassVar

import pyro.distributions as dist
import torch
from torch import Tensor

from .base import Family

__all__ = ["Bernoulli"]


class Bernoulli(Family):
    """Independent zeros and ones: λ = logits. For models with binary latents, such as `models.BinaryVAE`.

    Its draws have no reparameterised gradient: fit it with `inference.objectives.ScoreFunction`, or with
    `inference.objectives.AnalyticELBO` if the states can be summed.
    """

    discrete: ClassVar[bool] = True

    def __init__(self) -> None:
        super().__init__()

    @property
    def size(self) -> int:
        return self.dim

    def start(self) -> Tensor:
        return torch.zeros(self.dim)

    def forward(self, lam: Tensor) -> dist.Independent:
        return dist.Bernoulli(logits=lam).to_event(1)
