"""Wake-phase updates of model and guide."""

from __future__ import annotations

from dataclasses import dataclass
from math import log
from typing import Any, ClassVar

from ..programs.log_weights import check_draws, weights
from ..programs.traced_pairs import Program, traces
from .base import Loss

__all__ = ["ReweightedWakeSleep"]


@dataclass(frozen=True)
class ReweightedWakeSleep:
    """The model climbs IWAE's bound, the guide descends KL(p(h | x) ‖ q(h | x)): both by normalised weights, per datum.

    Estimates: minus the importance-weighted bound of IWAE; lower is better. The value and the model's gradient are unbiased
    for it. The guide's gradient is that of another function, the inclusive KL, and biased by its normalised weights, of
    order 1/k; at the exact posterior it vanishes in the mean only. For discrete and continuous latents alike. Harmful: with
    few draws, or a guide far too narrow, whose weights miss most of the posterior. This is the wake-wake variant: no sleep
    phase.

    Args:
        draws: draws for each update, at least 2: with one, its weight is 1 and the guide's gradient the score, pure noise.

    Reference: Bornschein & Bengio, "Reweighted wake-sleep" (2015), equations 8 and 11; Le, Kosiorek, Siddharth, Teh & Wood,
    "Revisiting reweighted wake-sleep" (2019).
    """

    estimates_elbo: ClassVar[bool] = False
    draws: int = 5

    def __post_init__(self) -> None:
        check_draws(self, self.draws, least=2)

    def __call__(self, model: Program, guide: Program, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Loss:
        draws = weights(traces(model, guide, args, kwargs, draws=self.draws, hold=True), self)
        log_w = draws.log_w.detach()
        surrogate = (log_w.softmax(0) * (draws.log_p + draws.log_q)).sum(0)
        return Loss(-draws.total(log_w.logsumexp(0) - log(self.draws)), -draws.total(surrogate))
