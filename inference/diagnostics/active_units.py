"""Active units: the latents that a VAE uses."""

from __future__ import annotations

from torch import Tensor

from guides import Guide

from ..programs.arguments import checked
from ..programs.posterior_means import posterior_means

__all__ = ["active_units"]


@checked
def active_units(guide: Guide, x: Tensor, *, seed: int = 0) -> Tensor:
    """Variance over the data of E_q[h | x] for each latent coordinate, shape (k,). A unit counts as active above 0.01.

    Reference: Burda, Grosse & Salakhutdinov, "Importance weighted autoencoders" (2016), section 5.3.
    """
    return posterior_means(guide, x, seed=seed).var(0)
