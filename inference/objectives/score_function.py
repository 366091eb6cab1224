"""The score-function gradient of the ELBO, with a baseline."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from ..programs.log_weights import check_draws, weights
from ..programs.traced_pairs import Program, traces
from .base import Loss

__all__ = ["ScoreFunction", "leave_one_out"]


def leave_one_out(log_w: Tensor) -> Tensor:
    """For each draw the mean of the others, shape (k, *plates): independent of the draw, so that no bias comes in."""
    return (log_w.sum(0) - log_w) / (len(log_w) - 1)


@dataclass(frozen=True)
class ScoreFunction:
    """−ELBO from draws of any guide, its gradient by the score: (log w − baseline) ∇ log q, per datum.

    Estimates: −ELBO; lower is better. Value and gradient are unbiased, for discrete and continuous latents alike. At the
    exact posterior log w is the same for every draw, so that with the leave-one-out baseline the gradient is zero for every
    draw. Harmful: where a latent can be reparameterised, and where latents are shared between many data.

    Args:
        draws: draws, averaged.
        baseline: from the log weights, shape (k, *plates), to what is subtracted from each; it must not depend on the draw
            itself. None for no baseline.

    Reference: Williams, "Simple statistical gradient-following algorithms" (1992); Kool, van Hoof & Welling, "Buy 4
    REINFORCE samples, get a baseline for free!" (2019).
    """

    estimates_elbo: ClassVar[bool] = True
    draws: int = 5
    baseline: Callable[[Tensor], Tensor] | None = leave_one_out

    def __post_init__(self) -> None:
        check_draws(self, self.draws, least=2 if self.baseline is leave_one_out else 1)

    def __call__(self, model: Program, guide: Program, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Loss:
        pairs = traces(model, guide, args, kwargs, draws=self.draws, hold=True)
        draws = weights(pairs, self, linear=True)
        log_w = draws.log_w.detach()
        signal = log_w if self.baseline is None else log_w - self.baseline(log_w)
        surrogate = (signal * draws.log_q + draws.log_p).mean(0)
        return Loss(-draws.total(log_w.mean(0)), -draws.total(surrogate))
