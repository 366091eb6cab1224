"""The gradient of the ELBO where draws have none."""

from __future__ import annotations

from typing import Any

import torch
from pyro.infer import ELBO
from torch import Tensor

from guides import Guide

__all__ = ["ScoreFunction"]


class ScoreFunction(ELBO):
    r"""−ELBO with the score-function gradient, each draw's baseline being the mean of the others.

    With f_k = log p(x, h_k) − log q(h_k), the gradient for each datum is the mean over k of (f_k − mean of the other f) times
    the gradient of log q(h_k), plus the gradient of log p(x, h_k) in the model's parameters. Unbiased: a baseline does not
    depend on its own draw. For binary latents, or any q; larger variance than reparameterised gradients where those exist.

    Args:
        draws: K, at least 2. One call of the model scores all.

    Reference: Williams (1992); Kool, van Hoof & Welling, "Buy 4 REINFORCE samples, get a baseline for free!" (2019).
    """

    def __init__(self, draws: int = 8) -> None:
        super().__init__()
        if draws < 2:
            raise ValueError(f"ScoreFunction: draws must be at least 2, for a baseline, but is {draws}.")
        self.draws = draws

    def differentiable_loss(
        self, model: Any, guide: Any, x: Tensor, index: Tensor | None = None, size: int | None = None
    ) -> Tensor:
        """An estimate of −ELBO of the whole data, shape (), whose gradient is an estimate of its gradient."""
        if not isinstance(guide, Guide) or guide.latents is None:
            raise TypeError(f"ScoreFunction needs a guide of this suite that was set up, not {type(guide).__name__}.")
        q = guide.q(x, index)
        with torch.no_grad():
            h = q.sample((self.draws,))
        log_p, log_q = guide.latents.log_joint(model, h, (x,)), q.log_prob(h)
        value = (log_p - log_q).detach()
        baseline = (value.sum(0) - value) / (self.draws - 1)
        surrogate = ((value - baseline) * log_q + log_p).mean(0).sum()
        elbo = value.mean(0).sum() + surrogate - surrogate.detach()
        return -elbo if size is None else -elbo * (size / len(x))

    def _get_trace(self, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError(f"{type(self).__name__} is not an estimate from traces of single draws.")

    def loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> float:
        """The loss as a number."""
        return float(self.differentiable_loss(model, guide, *args, **kwargs).detach())

    def loss_and_grads(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> float:
        """The loss as a number; its gradient is added to the parameters' grad."""
        loss = self.differentiable_loss(model, guide, *args, **kwargs)
        loss.backward()
        return float(loss.detach())
