"""The importance-weighted bound."""

from __future__ import annotations

from dataclasses import dataclass
from math import log
from typing import ClassVar

from ..programs.log_weights import LogWeights
from .base import Loss
from .weighted import Call, Weighted

__all__ = ["IWAE"]


@dataclass(frozen=True)
class IWAE(Weighted):
    """−log (1/K) Σ_k w_k, w_k = p(x, h_k) / q(h_k | x), per datum, from K = `draws` reparameterised draws.

    Estimates: minus the importance-weighted bound, which lies between the ELBO (K = 1) and the evidence and does not fall
    with K; lower is better. Value and gradient are unbiased for that bound. At the exact posterior the value is constant; the
    gradient vanishes only in the mean. Harmful: the signal-to-noise ratio of the encoder's gradient falls as 1/√K; DReG has
    the same mean without that fall.

    Each datum has its own weight if every latent lies in the data plate; otherwise there is one weight for all data.

    Args:
        draws: number K of draws in each bound.

    Reference: Burda, Grosse & Salakhutdinov, "Importance weighted autoencoders" (2016), equation 8; Rainforth et al.,
    "Tighter variational bounds are not necessarily better" (2018).
    """

    estimates_elbo: ClassVar[bool] = False
    draws: int = 5

    def loss(self, log_weights: LogWeights, call: Call) -> Loss:
        bound = log_weights.total(log_weights.log_w.logsumexp(0) - log(self.draws))
        return Loss(-bound.detach(), -bound)
