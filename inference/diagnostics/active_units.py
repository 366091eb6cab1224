"""Active units: the latents that a VAE uses."""

from __future__ import annotations

from torch import Tensor

from guides import Guide

from ..programs.arguments import checked
from ..programs.posterior_means import posterior_means
from ..programs.validation import check_data

__all__ = ["active_units"]


@checked
def active_units(guide: Guide, x: Tensor, *, seed: int = 0) -> Tensor:
    """Variance over the data of E_q[h | x] for each latent coordinate, shape (k,). A unit counts as active above 0.01.

    Reference: Burda, Grosse & Salakhutdinov, "Importance weighted autoencoders" (2016), section 5.3.
    """
    if not guide.local:
        raise ValueError(f"active_units: {type(guide).__name__} has one q for all data: use a guide with one for each datum.")
    if x.dim() == 0 or len(x) < 2:
        raise ValueError(f"active_units: x needs at least two rows, for a variance over them, but has shape {tuple(x.shape)}.")
    check_data(guide.model, (x,))
    return posterior_means(guide, x, seed=seed).var(0)
