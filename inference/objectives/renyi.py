"""Rényi's variational bound."""

from __future__ import annotations

from dataclasses import dataclass
from math import log
from typing import Any, ClassVar

from ..programs.log_weights import check_draws, weights
from ..programs.traced_pairs import Program, require_reparameterised, traces
from .base import Loss

__all__ = ["Renyi"]


@dataclass(frozen=True)
class Renyi:
    """−1/(1 − α) log (1/k) Σ_k w_k^(1 − α), w = p(x, h) / q(h | x), per datum, from k reparameterised draws.

    Estimates: minus the k-draw Rényi bound; lower is better. Value and gradient are unbiased for that bound, and biased for
    its limit of many draws. α = 0 is IWAE, α → 1 the ELBO, α < 0 can exceed the evidence. At the exact posterior the value
    is constant; the gradient vanishes in the mean only. Harmful: with a shared latent the weights of all data multiply, and
    one draw takes all the weight.

    Args:
        alpha: the order, any number but 1.
        draws: draws in each bound.

    Reference: Li & Turner, "Rényi divergence variational inference" (2016), equation 8.
    """

    estimates_elbo: ClassVar[bool] = False
    alpha: float = 0.5
    draws: int = 5

    def __post_init__(self) -> None:
        check_draws(self, self.draws)
        if self.alpha == 1 or not abs(self.alpha) < float("inf"):
            raise ValueError(f"Renyi: alpha must be finite and not 1, but is {self.alpha}: at 1 the bound is TraceELBO's.")

    def __call__(self, model: Program, guide: Program, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Loss:
        pairs = traces(model, guide, args, kwargs, draws=self.draws)
        require_reparameterised(pairs[0], self)
        draws = weights(pairs, self)
        order = 1.0 - self.alpha
        bound = draws.total(((order * draws.log_w).logsumexp(0) - log(self.draws)) / order)
        return Loss(-bound.detach(), -bound)
