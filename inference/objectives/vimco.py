"""The importance-weighted bound of discrete latents."""

from __future__ import annotations

from dataclasses import dataclass
from math import log
from typing import ClassVar

import torch
from torch import Tensor

from ..programs.log_weights import LogWeights
from .base import Loss
from .weighted import Call, Weighted

__all__ = ["VIMCO"]


@dataclass(frozen=True)
class VIMCO(Weighted):
    """IWAE's bound with a score-function gradient; the baseline of each draw is computed from the other draws.

    Estimates: minus the importance-weighted bound of IWAE; lower is better. Value and gradient are unbiased for it, for
    discrete and continuous latents alike. At the exact posterior the gradient vanishes only in the mean: all draws have the
    same weight, but the mean of their scores remains. Harmful: where a latent can be reparameterised, DReG has far less
    variance.

    Args:
        draws: number K of draws in each bound, at least 2.

    Reference: Mnih & Rezende, "Variational inference for Monte Carlo objectives" (2016), equations 7 and 10.
    """

    estimates_elbo: ClassVar[bool] = False
    reparameterised: ClassVar[bool] = False
    min_draws: ClassVar[int] = 2
    draws: int = 5

    def loss(self, log_weights: LogWeights, call: Call) -> Loss:
        bound = log_weights.log_w.logsumexp(0) - log(self.draws)
        signal = (bound - self._baseline(log_weights.log_w)).detach()
        surrogate = bound + (signal * log_weights.score).sum(0)
        return Loss(-log_weights.total(bound).detach(), -log_weights.total(surrogate))

    def _baseline(self, log_w: Tensor) -> Tensor:
        """The bound with the weight of each draw in turn replaced by the geometric mean of the others, shape of `log_w`."""
        others = (log_w.sum(0) - log_w) / (self.draws - 1)
        own = torch.eye(self.draws, dtype=torch.bool, device=log_w.device)
        own = own.reshape(self.draws, self.draws, *(1,) * (log_w.dim() - 1))
        return torch.where(own, others.unsqueeze(1), log_w.unsqueeze(0)).logsumexp(1) - log(self.draws)
