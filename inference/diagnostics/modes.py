"""Search for modes of the posterior outside q, which importance weights cannot detect because q has no draws there."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import log, pi
from typing import Any

import torch
from scipy.stats import chi2
from torch import Tensor

from ..programs.isolation import isolated
from ..programs.log_joint import LogJoint

__all__ = ["Mode", "missed_modes"]

MAX_TAIL = 1e-6
"""A mode lies outside q if a Gaussian with q's moments has less than this share of its mass farther out."""
MIN_SHARE = 0.02
"""Modes with a smaller share of the posterior are ignored."""
MIN_DISTANCE = 1.0
"""Two end points of the climbs count as one mode if they are closer, in q's standard deviations."""


@dataclass(frozen=True)
class Mode:
    """A maximum of the posterior in unconstrained space that lies outside q."""

    h: dict[str, Tensor]
    """The latents at the maximum."""
    log_mass: float
    """Laplace's estimate of the mode's contribution to log p(x), in nats."""
    share: float
    """The mode's share of the total of its own mass and the evidence estimated from q's draws."""


def missed_modes(
    model: Callable[..., Any],
    x: Tensor | tuple[Any, ...],
    h: Mapping[str, Tensor],
    log_evidence: float,
    *,
    starts: int = 32,
    steps: int = 300,
    seed: int = 0,
) -> list[Mode]:
    """Climbs the posterior from distant points and returns the modes that lie outside q's draws `h`.

    Laplace's approximation excludes maxima without mass, such as the neck of a funnel. A mode that no climb reaches is not
    found, so an empty list proves nothing.

    Args:
        model, x: the posterior.
        h: draws from q, for each latent shape (K, *shape).
        log_evidence: log p(x) estimated by q's importance weights.
        starts: number of climbs; their start points are spread ten times as widely as q's draws.
        steps: steps of Adam in each climb; the step size falls from one standard deviation of q to zero.
        seed: fixes the start points.
    """
    joint = LogJoint(model, x)
    u = joint.unconstrain(h)
    centre, spread = u.mean(0), u.std(0)
    with isolated(seed):
        z = 10 * torch.randn(starts, joint.dim, dtype=u.dtype)
    first, second = torch.zeros_like(z), torch.zeros_like(z)
    for step in range(1, steps + 1):
        gradient = (joint.score(centre + spread * z) * spread).nan_to_num(0.0, 0.0, 0.0)
        first, second = 0.9 * first + 0.1 * gradient, 0.99 * second + 0.01 * gradient**2
        rate = (1 - step / steps) ** 2
        z = z + rate * (first / (1 - 0.9**step)) / ((second / (1 - 0.99**step)).sqrt() + 1e-12)
    found: list[Mode] = []
    kept: list[Tensor] = []
    precision = torch.linalg.pinv(torch.atleast_2d(((u - centre) / spread).mT.cov()), hermitian=True)
    limit = float(chi2.isf(MAX_TAIL, joint.dim))
    for point in z[joint(centre + spread * z).detach().nan_to_num(-torch.inf).argsort(descending=True)]:
        if not point.isfinite().all() or any((point - other).norm() < MIN_DISTANCE for other in kept):
            continue
        kept.append(point)
        mass = _log_mass(joint, centre + spread * point)
        share = 1 / (1 + torch.tensor(log_evidence - mass, dtype=torch.float64).exp().item())
        if float(point @ precision @ point) > limit and share > MIN_SHARE:
            at = {name: value[0] for name, value in joint.constrain((centre + spread * point).unsqueeze(0)).items()}
            found.append(Mode(at, mass, share))
    return found


def _log_mass(joint: LogJoint, u: Tensor) -> float:
    """Laplace's approximation of the log integral around u; −inf if u is not a maximum."""
    score, height = joint.score(u.unsqueeze(0))[0], joint(u.unsqueeze(0))[0].detach()
    curvature = -joint.hessian(u)
    values = torch.linalg.eigvalsh(curvature) if bool(curvature.isfinite().all()) else -torch.ones(1)
    if not bool((values > 0).all()):
        return -torch.inf
    # A large Newton decrement means that the climb has not reached the maximum.
    if float(score @ torch.linalg.solve(curvature, score)) > 1.0:
        return -torch.inf
    return float(height + 0.5 * len(u) * log(2 * pi) - 0.5 * values.log().sum())
