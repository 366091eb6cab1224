"""Pictures of a VAE's latent space."""

from __future__ import annotations

from math import isqrt

import torch
from matplotlib.figure import Figure
from torch import Tensor

from guides import Guide
from models import VAE

from ..plots.active_unit_bars import active_unit_bars
from ..plots.image_grid import image_grid
from ..programs.isolation import isolated
from ..programs.posterior_means import posterior_means
from .active_units import active_units

__all__ = ["active_units_picture", "manifold", "prior_samples", "reconstructions", "traversals"]

MAX_RECONSTRUCTIONS = 20


def active_units_picture(guide: Guide, x: Tensor, *, threshold: float = 0.01, seed: int = 0) -> Figure:
    """The variance of each latent's posterior mean, sorted, on a log scale, with the threshold of activity."""
    return active_unit_bars(active_units(guide, x, seed=seed), threshold=threshold)


def reconstructions(model: VAE, guide: Guide, x: Tensor, *, seed: int = 0) -> Figure:
    """The first 20 rows of `x` above the means of p(x | h) at h drawn from q(h | x)."""
    x = x[:MAX_RECONSTRUCTIONS]
    with isolated(seed), torch.no_grad():
        guide.setup(x)
        out = model.decode(guide.q(x).sample()).mean
    return _grid(model, torch.stack([x, out]), "data above their reconstructions")


def prior_samples(model: VAE, *, side: int = 8, seed: int = 0) -> Figure:
    """side² means of p(x | h) at h drawn from the prior."""
    h = model.simulate(side**2, seed=seed)[0]
    with torch.no_grad():
        out = model.decode(h).mean
    return _grid(model, out.unflatten(0, (side, side)), "means of p(x | h) at h drawn from the prior")


def manifold(model: VAE, *, side: int = 15) -> Figure:
    """The mean of p(x | h) on a side × side grid of h at the prior's quantiles, for a model with two latents.

    Raises:
        ValueError: if the model does not have two latents.

    Reference: Kingma & Welling, "Auto-encoding variational Bayes" (2013), figure 4.
    """
    if model.latents != 2:
        raise ValueError(f"manifold: a model with 2 latents is needed, but this one has {model.latents}; use traversals.")
    quantiles = torch.linspace(0, 1, side + 2, dtype=model.dtype)[1:-1]
    line = torch.distributions.Normal(0.0, 1.0).icdf(quantiles)
    with torch.no_grad():
        out = model.decode(torch.cartesian_prod(line, line)).mean
    return _grid(model, out.unflatten(0, (side, side)), "means of p(x | h) over the latent plane")


def traversals(model: VAE, guide: Guide, x: Tensor, *, latents: int = 8, steps: int = 9, seed: int = 0) -> Figure:
    """One line for each of the most active latents: from the first datum's posterior mean, that latent goes from −3 to 3.

    Args:
        x: at least two rows: all of them decide which latents are active, and the first is traversed.
    """
    means = posterior_means(guide, x, seed=seed)
    order = means.var(0).argsort(descending=True)[:latents]
    h = means[0].expand(len(order), steps, -1).clone()
    for line, latent in enumerate(order):
        h[line, :, latent] = torch.linspace(-3.0, 3.0, steps, dtype=h.dtype)
    with torch.no_grad():
        return _grid(model, model.decode(h).mean, "the most active latents, each from −3 to 3")


def _grid(model: VAE, x: Tensor, title: str) -> Figure:
    """A grid of data of shape (lines, columns, *data_shape)."""
    shape = model.data_shape
    if len(shape) == 1:
        side = isqrt(shape[0])
        if side**2 != shape[0]:
            raise ValueError(
                f"x_i of shape {shape} is no image: an image has the shape (height, width), (channels, height, width), or "
                "(side²,)."
            )
        shape = (side, side)
    images = x.reshape(*x.shape[:2], *shape).detach().cpu()
    return image_grid(images.movedim(2, -1) if len(shape) == 3 else images.unsqueeze(-1), title=title)
