"""Independent coin flips, for binary latents."""

from __future__ import annotations

from typing import ClassVar

import pyro.distributions as dist
from torch import Tensor

from .base import PlainFamily

__all__ = ["Bernoulli"]


class Bernoulli(PlainFamily):
    """Independent zeros and ones: λ = logits. For models with binary latents, such as `models.BinaryVAE`.

    Its draws have no reparameterised gradient: fit it with `inference.objectives.ScoreFunction`, or with
    `inference.objectives.AnalyticELBO` if the states can be summed.
    """

    discrete: ClassVar[bool] = True

    def forward(self, lam: Tensor) -> dist.Independent:
        return dist.Bernoulli(logits=lam).to_event(1)
