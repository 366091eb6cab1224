"""Moves a guide to draws of the latents, by maximum likelihood."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import inf
from typing import Any

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from guides import Guide

from ..programs.bound import unwrap

__all__ = ["check_placeable", "place"]

SHAPE = 64
"""Draws of the guide's own shape that stand for a single point."""
ITERATIONS = 500
TOO_FAR = 1e30
STILL = 1e-3
"""Nats a draw: a search that gains less than this over the one before has ended."""


def check_placeable(guide: Callable[..., Any]) -> None:
    """Raises a TypeError unless `place` can move this guide."""
    own = unwrap(guide)
    if not isinstance(own, Guide) or own.family.discrete:
        raise TypeError(
            f"start moves guides of this suite over real latents, but the guide is {type(own).__name__}: leave start=None, "
            "and give an autoguide of Pyro's its own init_loc_fn."
        )


def place(guide: Callable[..., Any], draws: Mapping[str, Tensor], args: tuple[Any, ...]) -> None:
    """Sets λ to the maximum of Σ_k log q_λ(h_k), over the packed unconstrained latents, by L-BFGS.

    That is the q of the family with the least KL(p ‖ q) from what the draws h_k come from. A single draw is taken as the
    place of the guide's mean: the guide's own shape, moved there.

    Args:
        guide: a guide of this suite, set up; its parameters are changed.
        draws: each latent's draws in its own support, shape (K, *shape).
        args: the data.

    Raises:
        TypeError: for a guide that is not of this suite, or discrete.
        ValueError: if a latent is missing.
    """
    check_placeable(guide)
    own: Any = unwrap(guide)
    blocks = [block for block in (own.shared, own.latents) if block is not None]
    missing = [site.name for block in blocks for site in block.sites if site.name not in draws]
    if missing:
        raise ValueError(f"the start gives no draws of the latent {missing[0]!r}: it gives {sorted(draws)}.")
    with torch.no_grad():
        local = own.latents.pack(draws)
        shared = own.shared.pack(draws) if own.shared is not None else None
        if len(local) == 1:
            local, shared = _shaped(own, args[0], local[0], None if shared is None else shared[0])
    parameters = [p for p in own.parameters() if p.requires_grad]

    def value_and_gradient(flat: Any) -> tuple[float, Any]:
        vector_to_parameters(torch.from_numpy(flat).to(parameters[0]), parameters)
        with torch.enable_grad():
            loss = -_log_q(own, args[0], local, shared) / len(local)
            gradients = torch.autograd.grad(loss, parameters, materialize_grads=True, allow_unused=True)
        gradient = parameters_to_vector(gradients).double().numpy()
        # A line search that has stepped too far, to a scale of zero, is to come back.
        finite = bool(loss.isfinite()) and bool(np.isfinite(gradient).all())
        return (float(loss), gradient) if finite else (TOO_FAR, np.zeros_like(gradient))

    start = parameters_to_vector(parameters).detach().double().numpy()
    with torch.no_grad():
        found = minimize(value_and_gradient, start, jac=True, method="L-BFGS-B", options={"maxiter": ITERATIONS})
        before = inf
        while before - found.fun > STILL:
            # From far away it may stop where steps are small because of what it remembers of the way.
            before = found.fun
            found = minimize(value_and_gradient, found.x, jac=True, method="L-BFGS-B", options={"maxiter": ITERATIONS})
        vector_to_parameters(torch.from_numpy(found.x).to(parameters[0]), parameters)


def _shaped(own: Any, x: Any, local: Tensor, shared: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Draws of q, moved so that their mean is this point."""
    around = None
    if shared is not None:
        cloud = own.q_shared().sample((SHAPE,))
        around = cloud - cloud.mean(0) + shared
        q = own.q_given(x, None, cloud[0])
    else:
        q = own.q(x)
    cloud = q.sample((SHAPE,))
    return cloud - cloud.mean(0) + local, around


def _log_q(own: Any, x: Any, local: Tensor, shared: Tensor | None) -> Tensor:
    if shared is None:
        return own.q(x).log_prob(local).sum()
    return own.q_shared().log_prob(shared).sum() + own.q_given(x, None, shared.unsqueeze(1)).log_prob(local).sum()
