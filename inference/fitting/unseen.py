"""Optimises the λ_i of all data simultaneously, with the model frozen."""

from __future__ import annotations

from collections.abc import Callable
from math import isfinite
from typing import Any, NamedTuple

import torch
from torch import Tensor

from guides import Guide, Local, Structured

from ..evidence.finite import require_finite
from ..evidence.joint_family import JointFamily
from ..evidence.packed_guide import PackedGuide, packed_guide
from ..evidence.packed_model import PackedModel
from ..programs.arguments import checked
from ..programs.bound import unwrap
from ..programs.isolation import isolated, without_validation
from ..programs.validation import as_args, check_count, check_data, check_rate
from ..programs.whole_data import whole_data

__all__ = ["Ascent", "ascend", "check_ascent", "fit_unseen", "log_weights"]


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

    If the model has shared latents, their q is fitted to x too, from that of `guide`; and the λ_i are affine in them, by a
    `Structured` guide, if those of `guide` depend on them.

    Args:
        guide: a fitted guide with one λ for each datum, such as `Local` or `Amortized`.
        x: the data, or a tuple of the model's arguments.
        ascent: how to optimise; by default ``Ascent()``.
        seed: fixes the draws.

    Raises:
        TypeError, ValueError: for bad input; if the ELBO of x is not finite.
    """
    args, ascent = as_args(x), Ascent() if ascent is None else ascent
    own = unwrap(guide)
    if not isinstance(own, Guide):
        raise TypeError(f"fit_unseen needs a guide of this suite, which has a λ; {type(own).__name__} has none.")
    check_data(own.model, args)
    check_ascent(ascent)
    if not own.local:
        raise ValueError(f"{type(own).__name__} has one λ for all data: use a guide with one for each datum, such as Local.")
    with isolated(seed), whole_data():
        own.setup(*args)
        local = _untrained(own, args)
        packed = packed_guide(own.model, local, args)
        best = ascend(PackedModel(own.model, packed.latents, args), packed.family, packed.lam, ascent=ascent)
        _assign(local, packed, best)
    return local


def check_ascent(ascent: Any) -> None:
    """Raises unless `ascent` is an `Ascent` with valid options."""
    if not isinstance(ascent, Ascent):
        raise TypeError(f"ascent must be an Ascent, such as Ascent(steps=1000), but is {ascent!r}.")
    check_rate(ascent.lr)
    check_count(steps=ascent.steps, window=ascent.window, patience=ascent.patience, draws=ascent.draws)


def ascend(joint: PackedModel, family: Callable[[Tensor], Any], start: Tensor, *, ascent: Ascent) -> Tensor:
    """Maximises the ELBO from `start`. Returns λ, of the shape of `start`.

    Data with a λ_i of their own do not interact: each λ_i follows the gradient of the ELBO of its own datum. Path derivatives
    ("sticking the landing") are used, which have no variance where q is the posterior. Call it inside `isolated`.

    Args:
        joint: the model, which is frozen, and the data.
        family: λ ↦ q over the packed latents of `joint`.
        start: λ to start from.
        ascent: how to optimise.

    Raises:
        ValueError: for a family without reparameterised draws; if the ELBO is not finite.

    Reference: Roeder, Wu & Duvenaud, "Sticking the landing" (2017).
    """
    lam = start.detach().clone().requires_grad_()
    if not family(lam).has_rsample:
        name = type(family.guide.family if isinstance(family, JointFamily) else family).__name__
        raise ValueError(f"{name} has no reparameterised draws, which this optimisation needs: use a continuous family.")
    adam = torch.optim.Adam([lam], lr=ascent.lr)
    best, stale, window = -torch.inf, 0, []
    with without_validation(), torch.enable_grad():
        for _ in range(ascent.steps):
            elbos = log_weights(joint, family, lam, draws=ascent.draws, path=True).mean(0)
            elbo = elbos.sum()
            (gradient,) = torch.autograd.grad(-elbo, lam)
            lam.grad = gradient
            adam.step()
            window.append(float(elbo.detach()))
            if not isfinite(window[-1]):
                require_finite(elbos.detach(), "the best λ_i cannot be found: the ELBO")
                raise ValueError("the best λ_i cannot be found: the ELBOs of the data are finite, but their sum is not.")
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
    return require_finite(lam.detach(), "the best λ_i cannot be found: λ")


def log_weights(joint: PackedModel, family: Callable[[Tensor], Any], lam: Tensor, *, draws: int, path: bool = False) -> Tensor:
    """log p(x, h) − log q(h) at draws h ~ q_λ, shape (draws, N), or (draws,) for latents that are packed together.

    Args:
        joint: the model and the data.
        family: λ ↦ q over the packed latents of `joint`.
        lam: λ.
        draws: number of draws.
        path: lets the gradient in λ flow through the draws alone, not through the density of q.
    """
    q = family(lam)
    h = q.rsample((draws,)) if q.has_rsample else q.sample((draws,))
    density = family(lam.detach()) if path else q
    return joint.log_joint(h) - density.log_prob(h)


def _untrained(guide: Guide, args: tuple[Any, ...]) -> Local:
    """A guide with free λ_i at the family's start, and with the q of the shared latents of `guide`."""
    kind = Structured if guide.shared is not None and JointFamily(guide, args).dependent else Local
    shared = guide.shared_family if guide.shared is not None else None
    local = kind(guide.model, guide.family, plate=guide.plate, shared=shared)
    local.setup(*args)
    if guide.shared is not None:
        local.shared_lam.data = guide.shared_lam.detach().clone()
    return local


def _assign(local: Local, packed: PackedGuide, lam: Tensor) -> None:
    """Makes `lam` the λ of the guide that `packed` was made from."""
    if not isinstance(packed.family, JointFamily):
        local.table.data = lam
        return
    shared_lam, offset, coupling = packed.family.parts(lam)
    local.table.data = local.table.data + offset
    if local.shared is not None:
        local.shared_lam.data = shared_lam.clone()
    if coupling is not None and isinstance(local, Structured):
        local.coupling.data = local.coupling.data + coupling
