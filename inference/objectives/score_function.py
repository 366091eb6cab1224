"""The gradient of the ELBO where draws have none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from guides import Guide

from ..isolation import unscoped
from .base import Loss

__all__ = ["ScoreFunction"]


class ScoreFunction:
    r"""−ELBO with the score-function gradient, each draw's baseline being the mean of the others.

    With f_k = log p(x, h_k) − log q(h_k), the gradient for each datum is the mean over k of (f_k − mean of the other f) times
    the gradient of log q(h_k), plus the gradient of log p(x, h_k) in the model's parameters. Unbiased: a baseline does not
    depend on its own draw. For binary latents, or any q; larger variance than reparameterised gradients where those exist.

    Args:
        draws: K, at least 2. One call of the model scores all.

    Reference: Williams (1992); Kool, van Hoof & Welling, "Buy 4 REINFORCE samples, get a baseline for free!" (2019).
    """

    def __init__(self, draws: int = 8) -> None:
        if draws < 2:
            raise ValueError(f"ScoreFunction: draws must be at least 2, for a baseline, but is {draws}.")
        self.draws = draws

    def __call__(self, model: Callable[..., Any], guide: Callable[..., Any], args: Any, kwargs: Any) -> Loss:
        guide, x = unscoped(guide), args[0]
        if not isinstance(guide, Guide) or guide.latents is None:
            raise TypeError(f"ScoreFunction needs a guide of this suite that was set up, not {type(guide).__name__}.")
        q = guide.q(x, kwargs.get("index"))
        with torch.no_grad():
            h = q.sample((self.draws,))
        log_p, log_q = guide.latents.log_joint(model, h, args), q.log_prob(h)
        value = (log_p - log_q).detach()
        baseline = (value.sum(0) - value) / (self.draws - 1)
        surrogate = ((value - baseline) * log_q + log_p).mean(0).sum()
        scale = kwargs.get("size", len(x)) / len(x)
        return Loss(-scale * value.mean(0).sum(), -scale * surrogate)
