"""Wake-phase updates of model and guide."""

from __future__ import annotations

from dataclasses import dataclass
from math import log
from typing import ClassVar

from ..programs.log_weights import LogWeights
from .base import Loss
from .weighted import Call, Weighted

__all__ = ["ReweightedWakeSleep"]


@dataclass(frozen=True)
class ReweightedWakeSleep(Weighted):
    """Raises IWAE's bound in the model and lowers KL(p(h | x) ‖ q(h | x)) in the guide, both by normalised weights, per datum.

    Estimates: minus the importance-weighted bound of IWAE; lower is better. The value and the model's gradient are unbiased
    for it. The guide's gradient is that of another function, the inclusive KL, and its normalised weights bias it by O(1/K);
    at the exact posterior it vanishes only in the mean. Takes discrete and continuous latents alike. Harmful: with few
    draws, or with a guide far too narrow, whose weights miss most of the posterior. This is the wake-wake variant: no sleep
    phase.

    Args:
        draws: number K of draws in each update, at least 2: a single draw has weight 1, which leaves the guide nothing but
            the score, pure noise.

    Reference: Bornschein & Bengio, "Reweighted wake-sleep" (2015), equations 8 and 11; Le, Kosiorek, Siddharth, Teh & Wood,
    "Revisiting reweighted wake-sleep" (2019).
    """

    estimates_elbo: ClassVar[bool] = False
    reparameterised: ClassVar[bool] = False
    min_draws: ClassVar[int] = 2
    draws: int = 5

    def loss(self, log_weights: LogWeights, call: Call) -> Loss:
        log_w = log_weights.log_w.detach()
        surrogate = (log_w.softmax(0) * (log_weights.log_p + log_weights.log_q)).sum(0)
        return Loss(-log_weights.total(log_w.logsumexp(0) - log(self.draws)), -log_weights.total(surrogate))
