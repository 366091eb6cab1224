"""Natural gradients of the ELBO for Gaussian families."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, inf, isfinite
from typing import Any

import torch
from torch import Tensor

from guides import FullRank, Global, Guide, Local, MeanField

from ..programs.bound import unwrap
from ..programs.validation import check_count
from .base import Solution, Solver, Target
from .gaussian_state import GaussianState
from .mode import centred
from .weighted_rules import Slopes, WeightedRules

__all__ = ["NaturalGradient"]

SHRINK = 1 / 16
"""A step divides no eigenvalue of the precision by more than this: it is far from where its curvature was measured."""
WORSE = 1.0
"""Nats by which a step may lose by its own estimate before it is taken back."""
LEAST_TRUST = 2.0**-12
SHORTEST, LONGEST = 0.5, 4.0
"""Rates."""
ERROR = 0.05
"""Nats that a step may move q by the error of its points alone."""
MOVES = 3
"""Steps between two draws of points, at most."""
ENOUGH = 0.5
"""Of the points' worth must be left after a step for one more."""
PART = 8
"""An iteration draws one part in so many of the points that are kept."""
CALM = 5
"""Iterations over which q must be still at the end."""
EXACT = 1e-3
"""Part of the tolerance below which nothing is left to wait for, if that many more points say so:"""
SURE = 64
TINY = 1e-300


@dataclass(frozen=True)
class NaturalGradient(Solver):
    r"""Steps along F⁻¹∇ELBO, with the Fisher information F of a Gaussian in closed form: no matrix of λ's size is solved.

    In natural parameters the step is one of precision and mean, with g = E_q[∇ log p(x, h)] and H = −E_q[∇² log p(x, h)],

        M' = (1 − ρ) M + ρ H,    μ' = μ + ρ M'⁻¹ g,    q' = N(μ', (the blocks of M' that the family has)⁻¹).

    The mean moves by the whole M, which is Newton's step on the ELBO, also where the family leaves correlations out. For
    ρ = 1 and a Gaussian target one step is the optimum. The first mean is the mode of log p(x, h), as far as a few steps of
    L-BFGS find it, where that is the better start.

    Expectations need 2 dim + 1 scores ∇ log p an iteration and no second derivatives: H = E_q[Σ⁻¹ (μ − z) ∇ log p(x, z)ᵀ].
    They are over the points of all iterations that still tell something of this q, reweighted to it (`WeightedRules`): the
    noise falls as in an average over iterations, and q's own way does not bias it. The same points serve up to three steps,
    for as long as they are worth half of what they were.

    ρ is the part of the step after which nothing would be left along the last direction, by how much of that is left now
    (Barzilai & Borwein's rule), between ½ and 4; less as long as the error of the points is large. A step that loses more
    than a nat is taken back, and a quarter of it tried. It ends when the noise of the points, the step that is left, and the
    KL that q has moved in the last five iterations are below `tolerance` together: the distance that the fit claims. That
    can be too small where a posterior has tails that its points rarely meet, such as a centred hierarchy: reparametrise it,
    or lower the tolerance.

    For ``Global`` or, each datum by itself, ``Local``, with MeanField, FullRank or Blocks, of a model with nothing to learn.

    Args:
        tolerance: nats of the ELBO to the best, in total over all data.
        most: scores that an iteration may take, if one rule needs no more.

    Reference: Khan & Rue, "The Bayesian learning rule" (2023), equations 12 and 13; Opper & Archambeau, "The variational
    Gaussian approximation revisited" (2009); Barzilai & Borwein, "Two-point step size gradient methods" (1988).
    """

    tolerance: float = 0.01
    most: int = 4096

    def __post_init__(self) -> None:
        if not self.tolerance > 0:
            raise ValueError(f"NaturalGradient: tolerance must be positive, but is {self.tolerance}.")
        check_count(most=self.most)

    def check(self, target: Target) -> None:
        guide = unwrap(target.guide)
        known = isinstance(guide, (Global, Local)) and isinstance(guide.family, (MeanField, FullRank))
        family = f"({type(guide.family).__name__})" if isinstance(guide, Guide) else ""
        if not known:
            raise ValueError(
                "NaturalGradient has the Fisher information of MeanField, FullRank and Blocks in closed form, for Global and "
                f"Local, but the guide is {type(guide).__name__}{family}: use torch's Adam with StickingTheLanding or "
                "TraceELBO, which take any guide, or FixedDraws, which takes any Gaussian one."
            )
        if len(target.parameters) != 1:
            raise ValueError(
                "NaturalGradient moves one q alone, but this pair has other parameters to learn too (of the model, or of "
                "shared latents): use FixedDraws or torch's Adam."
            )

    def solve(self, target: Target, *, steps: int) -> Solution:
        self.check(target)
        guide: Any = unwrap(target.guide)
        start = GaussianState.of(guide.q(target.args[0]), guide.family)
        most = max(1, self.most // (2 * start.loc.shape[-1]))
        data = start.loc[..., 0].numel()
        known = WeightedRules(target, start)
        walk = _Walk(known)
        at, worst = centred(target, start)
        base, trust = start, 1.0
        past: list[GaussianState] = []
        losses: list[float] = []
        for _ in range(steps):
            nelbo = known.draw(at, min(most, max(1, known.rules // PART)))
            if not nelbo <= worst and trust > LEAST_TRUST:
                if isfinite(nelbo):
                    known.undo()
                losses.append(losses[-1] if losses else worst)
                if not known.batches:
                    at, worst = base, inf
                    continue
                trust /= 4
                walk.before = None
                at = walk.on(base, trust, moves=1)
            elif not isfinite(nelbo):
                return Solution.diverged(losses)
            else:
                losses.append(nelbo)
                base, trust = at, min(1.0, 2 * trust)
                at = walk.on(base, trust, moves=MOVES)
            worst = losses[-1] + WORSE if walk.length > WORSE else inf
            with torch.no_grad():
                target.parameters[0].copy_(guide.family.inverse(at.loc, at.root))
            past = [*past[1 - CALM :], base]
            still = max(walk.left, walk.length) < EXACT * self.tolerance
            if still and isfinite(known.draw(at, ceil(SURE / at.loc.shape[-1]))) and known.surprise < self.tolerance:
                return Solution.met(losses, walk.left / data)
            if len(past) == CALM and (distance := walk.left + at.kl(past[0])) < self.tolerance:
                if (lower := _off_saddle(at, walk.slopes)) is None:
                    return Solution.met(losses, distance / data)
                at, past = lower, []
        return Solution.ran_out(losses)


class _Walk:
    """Steps of q on the points that are known.

    Attributes:
        slopes, before: the last ones, and the last direction or None.
        length: of the last steps, Σ |step|² in the Fisher information.
        left: nats to the best that the noise of the points leaves, and the steps that are not taken yet.
    """

    slopes: Slopes

    def __init__(self, known: WeightedRules) -> None:
        self.known = known
        self.before: GaussianState | None = None
        self.rate = self.step = 1.0
        self.length = self.left = inf

    def on(self, at: GaussianState, trust: float, *, moves: int) -> GaussianState:
        """Where q is after so many steps, or fewer if the points are not worth enough there."""
        self.length = enough = 0.0
        for again in range(moves):
            slopes = self.known.slopes(at, enough=enough)
            if slopes is None:
                break
            self.slopes, enough = slopes, ENOUGH * slopes.effective
            direction = _moved(at, slopes, 1.0).minus(at)
            length = at.inner(direction, direction)
            if self.before is not None and (again or length < at.inner(self.before, self.before)):
                self._adapt(at, direction, self.before)
            self.step = min(self.rate, (ERROR / (slopes.error + TINY)) ** 0.5) * trust
            self.length += length * self.step**2
            self.left = slopes.noise * max(1.0, self.rate**2) + length * self.rate**2 / 2
            at, self.before = _moved(at, slopes, self.step), direction
        return at

    def _adapt(self, at: GaussianState, direction: GaussianState, before: GaussianState) -> None:
        left = at.inner(direction, before) / (at.inner(before, before) + TINY)
        self.rate = max(SHORTEST, min(LONGEST, self.step / (1 - left))) if left < 1 else LONGEST


def _moved(at: GaussianState, slopes: Slopes, rate: float) -> GaussianState:
    """The step; an eigenvalue of M'M⁻¹ that is negative counts as positive, for a step uphill is none."""
    root, values, vectors = _relative(at, slopes)
    values = 1 - rate + rate * values if rate <= 1 else values.abs() ** rate
    values, turned = values.abs().clamp(min=SHRINK), root @ vectors
    precision = (turned * values.unsqueeze(-2)) @ turned.mT
    inverse = torch.linalg.solve_triangular(root.mT, vectors, upper=True)
    newton = (inverse / values.unsqueeze(-2)) @ (inverse.mT @ slopes.gradient.unsqueeze(-1))
    return at._replace(loc=at.loc + rate * newton.squeeze(-1), precision=(precision + precision.mT) / 2)


def _off_saddle(at: GaussianState, slopes: Slopes) -> GaussianState | None:
    """The mean moved by one sd along the direction in which H is the most negative, or None if there is none.

    A step takes an eigenvalue by its size, so that it ends also where g is zero and H is minus M; no optimum is there.
    """
    root, values, vectors = _relative(at, slopes)
    uphill = values[..., :1] < 0
    if not uphill.any():
        return None
    return at._replace(loc=at.loc + uphill * torch.linalg.solve_triangular(root.mT, vectors[..., :1], upper=True).squeeze(-1))


def _relative(at: GaussianState, slopes: Slopes) -> tuple[Tensor, Tensor, Tensor]:
    """The Cholesky factor of M, and the eigenvalues and eigenvectors of H in its space: all 1 where H is M."""
    root = torch.linalg.cholesky(at.precision)
    half = torch.linalg.solve_triangular(root, slopes.curvature, upper=False)
    return root, *torch.linalg.eigh(torch.linalg.solve_triangular(root, half.mT, upper=False))
