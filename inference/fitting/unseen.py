"""Optimises the λ_i of all data simultaneously, with the model frozen."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pyro
import torch
from torch import Tensor

from guides import Guide, Local
from guides.families import Family
from guides.latents import Latents

from ..programs.arguments import checked
from ..programs.isolation import isolated
from ..programs.validation import as_args, check_count, check_data, check_rate

__all__ = ["Ascent", "ascend", "fit_unseen", "log_weights"]


class Ascent(NamedTuple):
    """How the λ_i of all data are optimised: by Adam on fresh draws, at 0.7 of its rate after each window without gain."""

    steps: int = 5000
    """Maximum number of steps."""
    lr: float = 0.02
    """Learning rate of the first step."""
    window: int = 100
    """Steps in a window. The mean ELBO of a window is compared with the best window before."""
    patience: int = 10
    """Number of windows without gain after which to stop (Cremer, Li & Duvenaud 2018)."""
    draws: int = 4
    """Draws per datum and step."""


@checked
def fit_unseen(guide: Guide, x: Tensor | tuple[Any, ...], *, ascent: Ascent | None = None, seed: int = 0) -> Local:
    """Fits a `Local` guide of the same model and family to data x that `guide` has not seen. The model is frozen.

    Args:
        guide: a fitted guide with one λ for each datum, such as `Local` or `Amortized`.
        x: the data, or a tuple of the model's arguments.
        ascent: how to optimise; by default ``Ascent()``.
        seed: fixes the draws.

    Raises:
        TypeError, ValueError: for bad input.
    """
    args = as_args(x)
    check_data(guide.model, args)
    if not guide.local:
        raise ValueError(f"{type(guide).__name__} has one λ for all data: use a guide with one for each datum, such as Local.")
    with isolated(seed):
        local = Local(guide.model, guide.family, plate=guide.plate)
        local.setup(*args)
        assert local.latents is not None
        best = ascend(
            guide.model, local.latents, local.family, local.table.detach(), args, ascent=Ascent() if ascent is None else ascent
        )
        local.table.data = best
    return local


def ascend(
    model: Callable[..., Any], latents: Latents, family: Family, start: Tensor, args: tuple[Any, ...], *, ascent: Ascent
) -> Tensor:
    """Maximises the ELBO from `start`. Returns λ, shape (N, family.size), or (family.size,) for global latents.

    Rows do not interact: each λ_i follows the gradient of the ELBO of its own datum. Path derivatives ("sticking the landing")
    are used, which have no variance where q is the posterior. Call it inside `isolated`.

    Args:
        model, latents, family: of the guide; the model is frozen.
        start: λ to start from, of the returned shape.
        args: the data.
        ascent: how to optimise.

    Raises:
        ValueError: for a discrete family, or bad options.

    Reference: Roeder, Wu & Duvenaud, "Sticking the landing" (2017).
    """
    check_rate(ascent.lr)
    check_count(steps=ascent.steps, window=ascent.window, patience=ascent.patience, draws=ascent.draws)
    if family.discrete:
        raise ValueError(
            f"{type(family).__name__} has no reparameterised draws, which this optimisation needs: use a continuous family."
        )
    lam = start.detach().clone().requires_grad_()
    adam = torch.optim.Adam([lam], lr=ascent.lr)
    best, stale, window = -torch.inf, 0, []
    with pyro.validation_enabled(False), torch.enable_grad():
        for _ in range(ascent.steps):
            elbo = log_weights(model, latents, family, lam, args, draws=ascent.draws, path=True).mean(0).sum()
            (gradient,) = torch.autograd.grad(-elbo, lam)
            lam.grad = gradient
            adam.step()
            window.append(float(elbo.detach()))
            if len(window) == ascent.window:
                gain = sum(window) / len(window)
                window = []
                if gain > best:
                    best, stale = gain, 0
                    continue
                stale += 1
                adam.param_groups[0]["lr"] *= 0.7
                if stale == ascent.patience:
                    break
    return lam.detach()


def log_weights(
    model: Callable[..., Any],
    latents: Latents,
    family: Family,
    lam: Tensor,
    args: tuple[Any, ...],
    *,
    draws: int,
    path: bool = False,
) -> Tensor:
    """log p(x, h) − log q(h) at draws h ~ q_λ, shape (draws, N), or (draws,) for global latents.

    Args:
        model, latents, family: of the guide.
        lam: λ, shape (N, family.size), or (family.size,) for global latents.
        args: the data.
        draws: number of draws per datum.
        path: lets the gradient in λ flow through the draws alone, not through the density of q.
    """
    q = family(lam)
    h = q.rsample((draws,)) if q.has_rsample else q.sample((draws,))
    density = family(lam.detach()) if path else q
    return latents.log_joint(model, h, args) - density.log_prob(h)
