"""The path derivative of the ELBO."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from ..programs.log_weights import check_draws, held_weights, weights
from ..programs.traced_pairs import Program, require_reparameterised, traces
from .base import Loss

__all__ = ["StickingTheLanding"]


@dataclass(frozen=True)
class StickingTheLanding:
    """−ELBO from reparameterised draws, its gradient without the score of q, whose mean is zero.

    Estimates: −ELBO; lower is better. Value and gradient are unbiased. At the exact posterior the gradient is zero for every
    draw, so a constant step size converges. Harmful: far from the posterior, or with a family that cannot reach it, its
    variance can exceed TraceELBO's.

    Args:
        draws: draws, averaged.

    Reference: Roeder, Wu & Duvenaud, "Sticking the landing" (2017), equation 7.
    """

    estimates_elbo: ClassVar[bool] = True
    draws: int = 1

    def __post_init__(self) -> None:
        check_draws(self, self.draws)

    def __call__(self, model: Program, guide: Program, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Loss:
        pairs = traces(model, guide, args, kwargs, draws=self.draws)
        require_reparameterised(pairs[0], self)
        draws = weights(pairs, self, linear=True)
        # log q(h) at the held draws has the gradient of the score alone: adding it takes the score out.
        score = held_weights(draws, model, guide, args, kwargs).log_q
        value = draws.total(draws.log_w.mean(0)).detach()
        return Loss(-value, -draws.total((draws.log_w + score).mean(0)))
