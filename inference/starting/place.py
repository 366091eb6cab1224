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

SHAPE_DRAWS = 64
"""Draws of the guide, moved to a single point, that represent this point: they keep the guide's scale to about 9 %."""
MAX_ITERATIONS = 500
"""Iterations of one L-BFGS search. Searches are repeated while they gain, so this limits no search as a whole."""
MIN_GAIN = 1e-3
"""Nats per draw: a search that gains less than this over the one before is the last."""
PENALTY = 1e30
"""Stands for a loss that is not finite: a line search that stepped too far, to a scale of zero, then comes back."""


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

    This is the q of the family that minimises KL(p ‖ q), where p is the distribution of the draws h_k. A single draw moves the
    guide's mean there and leaves its shape.

    Args:
        guide: a guide of this suite, set up. Its parameters are changed.
        draws: K draws of each latent in its own support, shape (K, *shape).
        args: the data.

    Raises:
        TypeError: for a guide outside this suite, or over discrete latents.
        ValueError: if there are no draws of one of the latents.
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
            local, shared = _cloud(own, args[0], local[0], None if shared is None else shared[0])
    parameters = [p for p in own.parameters() if p.requires_grad]

    def value_and_gradient(flat: Any) -> tuple[float, Any]:
        vector_to_parameters(torch.from_numpy(flat).to(parameters[0]), parameters)
        with torch.enable_grad():
            loss = -_log_q(own, args[0], local, shared) / len(local)
            gradients = torch.autograd.grad(loss, parameters, materialize_grads=True, allow_unused=True)
        gradient = parameters_to_vector(gradients).double().numpy()
        finite = bool(loss.isfinite()) and bool(np.isfinite(gradient).all())
        return (float(loss), gradient) if finite else (PENALTY, np.zeros_like(gradient))

    start = parameters_to_vector(parameters).detach().double().numpy()
    with torch.no_grad():
        options = {"maxiter": MAX_ITERATIONS}
        found = minimize(value_and_gradient, start, jac=True, method="L-BFGS-B", options=options)
        before = inf
        while before - found.fun > MIN_GAIN:
            # A search from far away may stop early, since its curvature estimates are from the way: start again without them.
            before = found.fun
            found = minimize(value_and_gradient, found.x, jac=True, method="L-BFGS-B", options=options)
        vector_to_parameters(torch.from_numpy(found.x).to(parameters[0]), parameters)


def _cloud(own: Any, x: Any, local: Tensor, shared: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Draws of q for local and shared latents, moved so that their mean is this point."""
    around = None
    if shared is not None:
        cloud = own.q_shared().sample((SHAPE_DRAWS,))
        around = cloud - cloud.mean(0) + shared
        q = own.q_given(x, None, cloud[0])
    else:
        q = own.q(x)
    cloud = q.sample((SHAPE_DRAWS,))
    return cloud - cloud.mean(0) + local, around


def _log_q(own: Any, x: Any, local: Tensor, shared: Tensor | None) -> Tensor:
    if shared is None:
        return own.q(x).log_prob(local).sum()
    return own.q_shared().log_prob(shared).sum() + own.q_given(x, None, shared.unsqueeze(1)).log_prob(local).sum()
