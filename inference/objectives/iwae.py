"""The importance-weighted bound."""

from __future__ import annotations

from dataclasses import dataclass
from math import log
from typing import Any, ClassVar

from ..programs.log_weights import check_draws, weights
from ..programs.traced_pairs import Program, require_reparameterised, traces
from .base import Loss

__all__ = ["IWAE"]


@dataclass(frozen=True)
class IWAE:
    """−log (1/k) Σ_k w_k, w = p(x, h) / q(h | x), per datum, from k reparameterised draws.

    Estimates: minus the importance-weighted bound, which lies between ELBO (k = 1) and evidence and never falls with k;
    lower is better. Value and gradient are unbiased for that bound. At the exact posterior the value is constant; the
    gradient vanishes in the mean only. Harmful: the signal-to-noise ratio of the encoder's gradient falls as 1/√k; DReG
    has the same mean and no such fall.

    The weight is per datum when every latent lies in the data plate, otherwise one for all the data.

    Args:
        draws: draws in each bound.

    Reference: Burda, Grosse & Salakhutdinov, "Importance weighted autoencoders" (2016), equation 8; Rainforth et al.,
    "Tighter variational bounds are not necessarily better" (2018).
    """

    estimates_elbo: ClassVar[bool] = False
    draws: int = 5

    def __post_init__(self) -> None:
        check_draws(self, self.draws)

    def __call__(self, model: Program, guide: Program, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Loss:
        pairs = traces(model, guide, args, kwargs, draws=self.draws)
        require_reparameterised(pairs[0], self)
        draws = weights(pairs, self)
        bound = draws.total(draws.log_w.logsumexp(0) - log(self.draws))
        return Loss(-bound.detach(), -bound)
