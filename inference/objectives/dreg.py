"""The doubly reparameterised gradient of the importance-weighted bound."""

from __future__ import annotations

from dataclasses import dataclass
from math import log
from typing import Any, ClassVar

from ..programs.log_weights import check_draws, held_weights, weights
from ..programs.traced_pairs import Program, require_reparameterised, traces
from .base import Loss

__all__ = ["DReG"]


@dataclass(frozen=True)
class DReG:
    """IWAE's bound with the score of q reparameterised once more: path derivatives weighted by squared normalised weights.

    Estimates: minus the importance-weighted bound of IWAE; lower is better. Value and gradient are unbiased for it, for the
    guide's parameters and the model's. At the exact posterior the guide's gradient is zero for every draw. With k = 1 it is
    StickingTheLanding. Harmful: as StickingTheLanding, and with latents shared between data, whose one joint weight makes
    all draws but one useless.

    Args:
        draws: draws in each bound.

    Reference: Tucker, Lawson, Gu & Maddison, "Doubly reparameterized gradient estimators for Monte Carlo objectives" (2019),
    equation 8.
    """

    estimates_elbo: ClassVar[bool] = False
    draws: int = 5

    def __post_init__(self) -> None:
        check_draws(self, self.draws)

    def __call__(self, model: Program, guide: Program, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Loss:
        pairs = traces(model, guide, args, kwargs, draws=self.draws)
        require_reparameterised(pairs[0], self)
        draws = weights(pairs, self)
        still = held_weights(draws, model, guide, args, kwargs)
        share = draws.log_w.detach().softmax(0)
        path = draws.log_w + still.log_q
        # The squared weights belong to the path through the draws; the model's own parameters keep the plain ones.
        surrogate = (share**2 * path + (share - share**2) * still.log_p).sum(0)
        bound = draws.log_w.detach().logsumexp(0) - log(self.draws)
        return Loss(-draws.total(bound), -draws.total(surrogate))
