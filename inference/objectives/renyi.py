"""Rényi's variational bound."""

from __future__ import annotations

from dataclasses import dataclass
from math import log
from typing import ClassVar

from ..programs.log_weights import LogWeights
from .base import Loss
from .weighted import Call, Weighted

__all__ = ["Renyi"]


@dataclass(frozen=True)
class Renyi(Weighted):
    """−1/(1 − α) log (1/K) Σ_k w_k^(1 − α), w_k = p(x, h_k) / q(h_k | x), per datum, from K = `draws` reparameterised draws.

    Estimates: minus the K-draw Rényi bound; lower is better. Value and gradient are unbiased for that bound, and biased for
    its limit of many draws. α = 0 is IWAE, α → 1 the ELBO, and α < 0 can exceed the evidence. At the exact posterior the value
    is constant; the gradient vanishes only in the mean. Harmful: with a shared latent the weights of all data multiply, and
    one draw takes all the weight.

    Args:
        alpha: the order, any finite number but 1.
        draws: number K of draws in each bound.

    Reference: Li & Turner, "Rényi divergence variational inference" (2016), equation 8.
    """

    estimates_elbo: ClassVar[bool] = False
    alpha: float = 0.5
    draws: int = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.alpha == 1 or not abs(self.alpha) < float("inf"):
            raise ValueError(f"Renyi: alpha must be finite and not 1, but is {self.alpha}: at 1 the bound is TraceELBO's.")

    def loss(self, log_weights: LogWeights, call: Call) -> Loss:
        order = 1.0 - self.alpha
        bound = log_weights.total(((order * log_weights.log_w).logsumexp(0) - log(self.draws)) / order)
        return Loss(-bound.detach(), -bound)
