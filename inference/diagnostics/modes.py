"""Does the posterior have mass where q has none? Importance weights cannot say: they see only where q draws."""

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

OUTSIDE = 1e-6
"""A mode is outside q if a Gaussian with q's moments has less than this share of its mass beyond it."""
ENOUGH = 0.02
"""Modes with a smaller share of the posterior than this are let be."""


@dataclass(frozen=True)
class Mode:
    """A maximum of the posterior, in unconstrained space, that lies outside q."""

    h: dict[str, Tensor]
    """The latents there."""
    log_mass: float
    """Laplace's estimate of its part of log p(x), in nats."""
    share: float
    """The same as a share of the evidence that q sees and this mode together."""


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
    """Climbs the posterior from far-away points, and returns the maxima with mass that lie outside q's draws `h`.

    Maxima without mass, as the neck of a funnel, are told apart by Laplace's approximation. A mode that no start climbs to is
    not found, so an empty list is no proof.

    Args:
        model, x: the posterior.
        h: draws from q, for each latent shape (K, *shape).
        log_evidence: log p(x) as q's importance weights see it.
        starts: points to climb from, ten times as spread as q's draws.
        steps: of Adam, with a step size from a whole standard deviation of q down to nothing.
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
    limit = float(chi2.isf(OUTSIDE, joint.dim))
    for point in z[joint(centre + spread * z).detach().nan_to_num(-torch.inf).argsort(descending=True)]:
        if not point.isfinite().all() or any((point - other).norm() < 1.0 for other in kept):
            continue
        kept.append(point)
        mass = _log_mass(joint, centre + spread * point)
        share = 1 / (1 + torch.tensor(log_evidence - mass, dtype=torch.float64).exp().item())
        if float(point @ precision @ point) > limit and share > ENOUGH:
            at = {name: value[0] for name, value in joint.constrain((centre + spread * point).unsqueeze(0)).items()}
            found.append(Mode(at, mass, share))
    return found


def _log_mass(joint: LogJoint, u: Tensor) -> float:
    """Laplace's log ∫ near u; −inf where u is no maximum."""
    score, height = joint.score(u.unsqueeze(0))[0], joint(u.unsqueeze(0))[0].detach()
    curvature = -joint.hessian(u)
    values = torch.linalg.eigvalsh(curvature) if bool(curvature.isfinite().all()) else -torch.ones(1)
    if not bool((values > 0).all()):
        return -torch.inf
    # A point that Newton's step would leave by far has not been climbed to its top.
    if float(score @ torch.linalg.solve(curvature, score)) > 1.0:
        return -torch.inf
    return float(height + 0.5 * len(u) * log(2 * pi) - 0.5 * values.log().sum())
