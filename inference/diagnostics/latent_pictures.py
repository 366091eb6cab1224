"""Pictures of a VAE's latent space."""

from __future__ import annotations

from math import isqrt

import torch
from matplotlib.figure import Figure
from torch import Tensor

from guides import Guide
from models import VAE

from ..programs.isolation import isolated
from ..programs.posterior_means import posterior_means

__all__ = ["active_units_picture", "manifold", "prior_samples", "reconstructions", "traversals"]


def active_units_picture(guide: Guide, x: Tensor, *, threshold: float = 0.01, seed: int = 0) -> Figure:
    """The variance of each latent's posterior mean, sorted, on a log scale, with the threshold of activity."""
    variance = posterior_means(guide, x, seed=seed).var(0).sort(descending=True).values.cpu()
    figure = Figure(figsize=(5.0, 3.0), layout="constrained")
    axis = figure.subplots()
    axis.bar(
        range(len(variance)), variance.clamp(min=1e-6).tolist(), color=["C0" if v > threshold else "C7" for v in variance]
    )
    axis.axhline(threshold, color="k", linestyle=":", linewidth=1)
    axis.set_yscale("log")
    axis.set_xlabel("latent, sorted")
    axis.set_ylabel("variance of E[h | x]")
    axis.set_title(f"{int((variance > threshold).sum())} of {len(variance)} latents are active", fontsize=10)
    return figure


def reconstructions(model: VAE, guide: Guide, x: Tensor, *, seed: int = 0) -> Figure:
    """The rows `x` above the means of p(x | h) at h drawn from q(h | x). Up to 20 rows."""
    x = x[:20]
    with isolated(seed), torch.no_grad():
        guide.setup(x)
        out = model.decode(guide.q(x).sample()).mean
    return _grid(model, torch.stack([x, out]), "data, and reconstructions")


def prior_samples(model: VAE, *, side: int = 8, seed: int = 0) -> Figure:
    """side² means of p(x | h) at h drawn from the prior."""
    h = model.simulate(side**2, seed=seed)[0]
    with torch.no_grad():
        out = model.decode(h).mean
    return _grid(model, out.unflatten(0, (side, side)), "drawn from the prior")


def manifold(model: VAE, *, side: int = 15) -> Figure:
    """The mean of p(x | h) over a grid of h whose coordinates are the prior's quantiles, for a model with two latents.

    Raises:
        ValueError: if the model has not two latents.

    Reference: Kingma & Welling, "Auto-encoding variational Bayes" (2013), figure 4.
    """
    if model.latents != 2:
        raise ValueError(f"manifold: a model with 2 latents is needed, but this one has {model.latents}; use traversals.")
    quantiles = torch.linspace(0, 1, side + 2, dtype=model.dtype)[1:-1]
    line = torch.distributions.Normal(0.0, 1.0).icdf(quantiles)
    with torch.no_grad():
        out = model.decode(torch.cartesian_prod(line, line)).mean
    return _grid(model, out.unflatten(0, (side, side)), "the latent plane")


def traversals(model: VAE, guide: Guide, x: Tensor, *, latents: int = 8, steps: int = 9, seed: int = 0) -> Figure:
    """One line for each of the most active latents: from the first datum's posterior mean, that latent from −3 to 3.

    Args:
        x: at least two rows, whose first is traversed and all of which say what is active.
    """
    means = posterior_means(guide, x, seed=seed)
    order = means.var(0).argsort(descending=True)[:latents]
    h = means[0].expand(len(order), steps, -1).clone()
    for line, latent in enumerate(order):
        h[line, :, latent] = torch.linspace(-3.0, 3.0, steps, dtype=h.dtype)
    with torch.no_grad():
        return _grid(model, model.decode(h).mean, "the most active latents, from −3 to 3")


def _grid(model: VAE, images: Tensor, title: str) -> Figure:
    """Images of shape (lines, columns, *data_shape), one beside the other."""
    shape = model.data_shape
    if len(shape) == 1:
        side = isqrt(shape[0])
        if side**2 != shape[0]:
            raise ValueError(f"x_i of shape {shape} is no image: it is neither square nor (height, width).")
        shape = (side, side)
    pictures = images.reshape(*images.shape[:2], *shape).detach().cpu()
    pictures = pictures.movedim(2, -1) if len(shape) == 3 else pictures.unsqueeze(-1)
    lines, columns, height, width, channels = pictures.shape
    canvas = pictures.permute(0, 2, 1, 3, 4).reshape(lines * height, columns * width, channels).clamp(0, 1)
    figure = Figure(figsize=(max(3.0, 0.6 * columns), max(1.0, 0.6 * lines * height / width) + 0.3), layout="constrained")
    axis = figure.subplots()
    axis.imshow(canvas.expand(*canvas.shape[:2], 3).numpy(), interpolation="nearest")
    axis.set_axis_off()
    axis.set_title(title, fontsize=9)
    return figure
