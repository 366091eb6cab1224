"""The best λ_i of every datum at once, with the model frozen."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pyro
import torch
from torch import Tensor

from guides import Guide, Local
from guides.families import Family
from guides.latents import Latents

from ..programs.isolation import isolated
from ..programs.validation import as_args, check_count, check_data, check_rate

__all__ = ["Ascent", "ascend", "fit_unseen", "log_weights"]


class Ascent(NamedTuple):
    """How λ is optimised, all data at once: Adam on fresh draws, its step size falling when a window brings no gain."""

    steps: int = 5000
    """At most."""
    lr: float = 0.02
    window: int = 100
    """Steps whose mean ELBO is compared with the best window before."""
    patience: int = 10
    """Stop after so many windows without gain (Cremer, Li & Duvenaud 2018)."""
    draws: int = 4
    """Draws of each datum in a step."""


def fit_unseen(guide: Guide, x: Tensor | tuple[Any, ...], *, ascent: Ascent | None = None, seed: int = 0) -> Local:
    """A `Local` guide of the same model and family for x that `guide` has not seen; the model stays as it is.

    Args:
        guide: a fitted guide with one λ for each datum.
        x: the data, or a tuple of the model's arguments.
        ascent: how to optimise.
        seed: fixes the draws.

    Raises:
        TypeError, ValueError: for bad input.
    """
    args = as_args(x)
    check_data(guide.model, args)
    if not guide.local:
        raise ValueError(f"{type(guide).__name__} has one λ for all data, and none for an unseen datum: use a local guide.")
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
    """λ after climbing the ELBO from `start`, shape (N, family.size), or (family.size,) for global latents.

    Rows do not interact: each datum's λ_i follows the gradient of its own ELBO, by path derivatives ("sticking the landing"),
    which have no variance where q is the posterior. Call it inside `isolated`.

    Reference: Roeder, Wu & Duvenaud, "Sticking the landing" (2017).
    """
    check_rate(ascent.lr)
    check_count(steps=ascent.steps, window=ascent.window, patience=ascent.patience, draws=ascent.draws)
    if family.discrete:
        raise ValueError(f"{type(family).__name__} has no reparameterised draws, so its λ cannot be optimised by them.")
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
        path: whether the gradient in λ is to flow through the draws alone, and not through the density of q.
    """
    q = family(lam)
    h = q.rsample((draws,)) if q.has_rsample else q.sample((draws,))
    density = family(lam.detach()) if path else q
    return latents.log_joint(model, h, args) - density.log_prob(h)
