"""The score-function gradient of the ELBO, with a baseline."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ..programs.arguments import check_fields
from ..programs.log_weights import LogWeights
from ..programs.validation import check_draws
from .base import Loss
from .weighted import Call, Weighted

__all__ = ["ScoreFunction", "leave_one_out"]


def leave_one_out(log_w: Tensor) -> Tensor:
    """The mean of the other draws for each draw, shape (K, *plates). It does not depend on the draw, so adds no bias."""
    return (log_w.sum(0) - log_w) / (len(log_w) - 1)


@dataclass(frozen=True)
class ScoreFunction(Weighted):
    """−ELBO from draws of any guide; its gradient by the score: (log w − baseline) ∇ log q, per datum.

    Estimates: −ELBO; lower is better. Value and gradient are unbiased, for discrete and continuous latents alike. At the
    exact posterior log w is the same for every draw, so with the leave-one-out baseline the gradient is zero for every draw.
    Harmful: where a latent can be reparameterised, and where latents are shared between many data.

    Args:
        draws: number K of draws, averaged.
        baseline: maps log weights, shape (K, *plates), to the values subtracted from them; the value for a draw must not
            depend on that draw. None for no baseline.

    Reference: Williams, "Simple statistical gradient-following algorithms" (1992); Kool, van Hoof & Welling, "Buy 4
    REINFORCE samples, get a baseline for free!" (2019).
    """

    estimates_elbo: ClassVar[bool] = True
    reparameterised: ClassVar[bool] = False
    draws: int = 5
    baseline: Callable[[Tensor], Tensor] | None = leave_one_out

    def __post_init__(self) -> None:
        check_fields(self)
        check_draws(self, self.draws, least=2 if self.baseline is leave_one_out else 1)

    def loss(self, log_weights: LogWeights, call: Call) -> Loss:
        log_w = log_weights.log_w.detach()
        signal = log_w if self.baseline is None else log_w - self.baseline(log_w)
        surrogate = (signal * log_weights.score + log_weights.log_p).mean(0)
        return Loss(-log_weights.total(log_w.mean(0)), -log_weights.total(surrogate))
