"""Gaussians at modes of the posterior, with its curvature as their precision: starts that do not depend on units."""

from __future__ import annotations

import time
from math import inf, isfinite

import torch
from torch import Tensor

from ..programs.packed_scores import PackedScores
from .gaussian_state import GaussianState

__all__ = ["MAX_DIM", "best_of", "climbed", "nelbo_of"]

MAX_DIM = 300
"""Latents of a datum up to which the whole curvature is computed: it takes as many mapped gradients."""
MAX_STEPS = 30
"""Newton steps of a climb: a log-concave posterior takes about ten, and one without a mode has no last one."""
KEPT_STEPS = {1, 2, 4, 8, 16}
"""Steps after which a climb keeps its Gaussian, besides the last: the ELBO may be highest long before the mode."""
MIN_DECREMENT = 1e-3
"""Nats that one more Newton step would gain, per datum, below which the climb ends: it is a start, no result."""
MIN_CURVATURE = 1e-6
"""Smallest curvature of a direction relative to those of the coordinates: keeps steps and covariances finite."""
SHORTENED = tuple(2.0**-k for k in range(12))
"""Fractions of a Newton step that are tried, in one mapped call."""
DRAWS = 64
"""Draws that estimate the ELBO of a start, in pairs of opposite signs."""


def climbed(scores: PackedScores, start: GaussianState, loc: Tensor, *, deadline: float = inf) -> list[GaussianState]:
    """Newton's method from `loc` towards a mode of log p: Gaussians on the way, with its curvature as their precision.

    The absolute values of the curvatures are used, so that the climb leaves saddles. Coordinates are scaled by their own
    curvatures first, so units make no difference.

    Args:
        scores: log p of the latents.
        start: gives the blocks of the Gaussians.
        loc: where to begin.
        deadline: reading of `time.perf_counter` at which the climb ends.

    Returns:
        The Gaussians after `KEPT_STEPS` and at the end; none if log p or its derivatives are not finite at the start or cannot
        be computed.
    """
    z = loc
    log_p, score = (part[0] for part in scores(z.unsqueeze(0)))
    if not (log_p.isfinite().all() and score.isfinite().all()):
        return []
    kept: list[GaussianState] = []
    last: GaussianState | None = None
    for number in range(MAX_STEPS):
        precision = _precision(scores, z)
        if precision is None:
            break
        last = start._replace(loc=z, precision=precision)
        if number in KEPT_STEPS:
            kept.append(last)
        if time.perf_counter() > deadline:
            break
        step = torch.cholesky_solve(score.unsqueeze(-1), torch.linalg.cholesky(precision)).squeeze(-1)
        if float((score * step).sum(-1).max()) / 2 < MIN_DECREMENT:
            break
        points = torch.stack([z + fraction * step for fraction in SHORTENED])
        values, slopes = scores(points)
        values = torch.where(values.isfinite() & slopes.isfinite().all(-1), values, -inf)
        highest, best = values.max(0, keepdim=True)
        moved = highest[0] > log_p
        if not moved.any():
            break
        wide = best.unsqueeze(-1).expand(1, *z.shape)
        log_p = torch.where(moved, highest[0], log_p)
        z = torch.where(moved.unsqueeze(-1), points.gather(0, wide)[0], z)
        score = torch.where(moved.unsqueeze(-1), slopes.gather(0, wide)[0], score)
    return kept if last is None or (kept and kept[-1] is last) else [*kept, last]


def _precision(scores: PackedScores, z: Tensor) -> Tensor | None:
    """The curvature at a point, made positive definite; None if it is not finite or cannot be computed."""
    try:
        curvature = scores.curvature(z)
        return _definite(curvature) if curvature.isfinite().all() else None
    except (RuntimeError, NotImplementedError):
        return None


def nelbo_of(scores: PackedScores, q: GaussianState) -> float:
    """−ELBO of q, in nats, from `DRAWS` draws that are the same for every q of one shape; infinite if it is not finite."""
    source = torch.Generator().manual_seed(0)
    noise = torch.randn(DRAWS // 2, *q.loc.shape, generator=source, dtype=torch.float64)
    noise = torch.cat([noise, -noise])
    try:
        root = q.root
    except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
        return inf
    log_p, _ = scores(q.loc + (root @ noise.unsqueeze(-1)).squeeze(-1))
    nelbo = -float(log_p.sum()) / DRAWS - q.entropy
    return nelbo if isfinite(nelbo) else inf


def best_of(scores: PackedScores, candidates: list[GaussianState]) -> tuple[GaussianState, float]:
    """The candidate with the highest ELBO, and its −ELBO, in nats."""
    nelbos = [nelbo_of(scores, q) for q in candidates]
    best = min(range(len(candidates)), key=nelbos.__getitem__)
    return candidates[best], nelbos[best]


def _definite(curvature: Tensor) -> Tensor:
    """The matrix with the absolute values of the eigenvalues, after scaling its diagonal to ±1."""
    size = curvature.diagonal(dim1=-2, dim2=-1).abs()
    size = size.clamp(min=1e-12).where(size > 0, torch.ones_like(size)).sqrt()
    scaled = curvature / size.unsqueeze(-1) / size.unsqueeze(-2)
    values, vectors = torch.linalg.eigh(scaled)
    values = values.abs().clamp(min=MIN_CURVATURE)
    whole = (vectors * values.unsqueeze(-2)) @ vectors.mT * size.unsqueeze(-1) * size.unsqueeze(-2)
    return (whole + whole.mT) / 2
