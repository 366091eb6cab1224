"""The path derivative of the ELBO."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..programs.log_weights import LogWeights, held_log_weights
from .base import Loss
from .weighted import Call, Weighted

__all__ = ["StickingTheLanding"]


@dataclass(frozen=True)
class StickingTheLanding(Weighted):
    """−ELBO from reparameterised draws; its gradient leaves out the score of q, whose mean is zero.

    Estimates: −ELBO; lower is better. Value and gradient are unbiased. At the exact posterior the gradient is zero for every
    draw, so a constant step size converges. Harmful: far from the posterior, or with a family that cannot reach it, its
    variance can exceed TraceELBO's.

    Args:
        draws: number K of draws, averaged.

    Reference: Roeder, Wu & Duvenaud, "Sticking the landing" (2017), equation 7.
    """

    estimates_elbo: ClassVar[bool] = True
    draws: int = 1

    def loss(self, log_weights: LogWeights, call: Call) -> Loss:
        # log q(h) at the detached draws has the score as its gradient: adding it cancels the score in log_w.
        score = held_log_weights(log_weights, *call).log_q
        value = log_weights.total(log_weights.log_w.mean(0)).detach()
        return Loss(-value, -log_weights.total((log_weights.log_w + score).mean(0)))
