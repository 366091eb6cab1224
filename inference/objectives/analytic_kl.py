"""The ELBO with its KL in closed form."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from pyro.distributions.util import scale_and_mask
from torch import Tensor

from ..elbos.closed_form import kl
from ..programs.traced_pairs import Pair, latents, require_reparameterised
from .averaged import Averaged
from .base import Loss

__all__ = ["AnalyticKL"]


@dataclass(frozen=True)
class AnalyticKL(Averaged):
    """−E_q[log p(x | h)] from draws + KL(q(h | x) ‖ p(h)) in closed form.

    Estimates: −ELBO; lower is better. Value and gradient are unbiased. At the exact posterior both are noisy: a KL in closed
    form does not cancel the noise of the likelihood draw by draw, so the value has variance where TraceELBO's has none.
    Harmful: near a tight bound, for that reason; useful early in a fit, where the likelihood is the smaller noise.

    The guide must draw each latent at the model's own site, from a distribution whose KL to the prior has a closed form.

    Args:
        draws: number K of draws, averaged.

    Reference: Kingma & Welling, "Auto-encoding variational Bayes" (2014), equation 7.
    """

    estimates_elbo: ClassVar[bool] = True
    draws: int = 1

    def loss(self, pair: Pair) -> Loss:
        require_reparameterised(pair, self)
        ours, theirs = latents(pair.guide), latents(pair.model)
        # KL(q(h₂ | h₁) ‖ p(h₂ | h₁)) at a drawn h₁ is valid only if both guide and model draw h₁ first.
        if list(ours) != list(theirs):
            raise ValueError(
                f"AnalyticKL needs a guide that draws the model's sites {list(theirs)}, in this order and no others, but it "
                f"draws {list(ours)}: use StickingTheLanding, ClosedFormEntropy or TraceELBO."
            )
        complexity = sum((self._kl(name, site, theirs[name]) for name, site in ours.items()), start=torch.zeros(()))
        observed = [s["log_prob_sum"] for s in pair.model.nodes.values() if s["type"] == "sample" and s["is_observed"]]
        nelbo = complexity - torch.stack(observed).sum() if observed else complexity
        return Loss(nelbo.detach(), nelbo)

    def _kl(self, name: str, ours: dict[str, Any], theirs: dict[str, Any]) -> Tensor:
        if (ours["mask"] is None) != (theirs["mask"] is None) or _plain(ours["scale"]) != _plain(theirs["scale"]):
            raise ValueError(
                f"AnalyticKL: guide and model mask or scale the latent {name!r} differently, so that log q − log p is no KL: "
                "use StickingTheLanding or TraceELBO."
            )
        try:
            divergence = kl(ours["fn"], theirs["fn"])
        except (NotImplementedError, TypeError):
            raise ValueError(
                f"AnalyticKL: the KL from {type(ours['fn']).__name__} to {type(theirs['fn']).__name__} at the latent {name!r} "
                "has no closed form here: use StickingTheLanding or TraceELBO."
            ) from None
        total: Tensor = scale_and_mask(divergence, ours["scale"], ours["mask"]).sum()
        return total


def _plain(scale: Any) -> float | None:
    """A scale that is a number; None for a tensor, whose value an objective must not read."""
    return None if isinstance(scale, Tensor) else float(scale)
