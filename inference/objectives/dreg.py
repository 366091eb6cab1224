"""The doubly reparameterised gradient of the importance-weighted bound."""

from __future__ import annotations

from dataclasses import dataclass
from math import log
from typing import ClassVar

from ..programs.log_weights import LogWeights, held_log_weights
from .base import Loss
from .weighted import Call, Weighted

__all__ = ["DReG"]


@dataclass(frozen=True)
class DReG(Weighted):
    """IWAE's bound with a doubly reparameterised gradient: path derivatives weighted by squared normalised weights.

    With w̃_k = w_k / Σ_j w_j, the guide's gradient is Σ_k w̃_k² (∂ log w_k / ∂h_k) (∂h_k / ∂λ).

    Estimates: minus the importance-weighted bound of IWAE; lower is better. Value and gradient are unbiased for it, for the
    guide's parameters and the model's. At the exact posterior the guide's gradient is zero for every draw. With K = 1 it is
    StickingTheLanding. Harmful: where StickingTheLanding is, and with latents shared between data: the one joint weight makes
    all draws but one useless.

    Args:
        draws: number K of draws in each bound.

    Reference: Tucker, Lawson, Gu & Maddison, "Doubly reparameterized gradient estimators for Monte Carlo objectives" (2019),
    equation 8.
    """

    estimates_elbo: ClassVar[bool] = False
    draws: int = 5

    def loss(self, log_weights: LogWeights, call: Call) -> Loss:
        held = held_log_weights(log_weights, *call)
        share = log_weights.log_w.detach().softmax(0)
        path = log_weights.log_w + held.log_q
        # Only the path through the draws has squared weights; the model's own parameters keep the plain ones.
        surrogate = (share**2 * path + (share - share**2) * held.log_p).sum(0)
        bound = log_weights.log_w.detach().logsumexp(0) - log(self.draws)
        return Loss(-log_weights.total(bound), -log_weights.total(surrogate))
