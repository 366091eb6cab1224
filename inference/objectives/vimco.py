"""The importance-weighted bound of discrete latents."""

from __future__ import annotations

from dataclasses import dataclass
from math import log
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..programs.log_weights import check_draws, weights
from ..programs.traced_pairs import Program, traces
from .base import Loss

__all__ = ["VIMCO"]


@dataclass(frozen=True)
class VIMCO:
    """IWAE's bound by the score function, each draw's baseline made from the other draws.

    Estimates: minus the importance-weighted bound of IWAE; lower is better. Value and gradient are unbiased for it, for
    discrete and continuous latents alike. At the exact posterior the gradient vanishes in the mean only: no draw is better
    than the others, but the mean of their scores is left. Harmful: where a latent can be reparameterised, DReG has far less
    variance.

    Args:
        draws: draws in each bound, at least 2.

    Reference: Mnih & Rezende, "Variational inference for Monte Carlo objectives" (2016), equations 7 and 10.
    """

    estimates_elbo: ClassVar[bool] = False
    draws: int = 5

    def __post_init__(self) -> None:
        check_draws(self, self.draws, least=2)

    def __call__(self, model: Program, guide: Program, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Loss:
        draws = weights(traces(model, guide, args, kwargs, draws=self.draws, hold=True), self)
        bound = draws.log_w.logsumexp(0) - log(self.draws)
        signal = (bound - self._baseline(draws.log_w)).detach()
        return Loss(-draws.total(bound).detach(), -draws.total(bound + (signal * draws.log_q).sum(0)))

    def _baseline(self, log_w: Tensor) -> Tensor:
        """The bound with each weight in turn replaced by the geometric mean of the others, shape of `log_w`."""
        others = (log_w.sum(0) - log_w) / (self.draws - 1)
        own = torch.eye(self.draws, dtype=torch.bool, device=log_w.device)
        own = own.reshape(self.draws, self.draws, *(1,) * (log_w.dim() - 1))
        return torch.where(own, others.unsqueeze(1), log_w.unsqueeze(0)).logsumexp(1) - log(self.draws)
