"""Natural gradients of the ELBO for Gaussian families."""

from __future__ import annotations

import time
from dataclasses import dataclass
from math import ceil, inf, isfinite

import torch
from torch import Tensor

from guides import FullRank, Global, Local, MeanField

from ..programs.arguments import check_fields
from ..programs.bound import unwrap
from ..programs.packed_scores import PackedScores
from ..programs.validation import check_count
from .base import Solution, Solver, SolverTask, check_only_q, guide_name
from .gaussian_guides import GaussianGuide, gaussian_guide
from .gaussian_state import GaussianState
from .laplace import MAX_DIM, best_of, climbed
from .mode import centred
from .weighted_rules import Slopes, WeightedRules

__all__ = ["NaturalGradient"]

MIN_EIGENVALUE = 1 / 16
"""Lower bound on the eigenvalues of M' relative to M: a step beyond it would go far from the q at which H was measured."""
MAX_INCREASE = 1.0
"""Nats by which −ELBO may rise in a step that is kept: the estimate of a good step may rise by its noise."""
MIN_TRUST = 2.0**-12
"""Fraction of a step, reached by six quarterings, at which a step is kept even if −ELBO rises, so that every fit proceeds."""
MIN_RATE, MAX_RATE = 0.5, 4.0
"""Barzilai and Borwein's rule is noisy: it may halve a whole step and take four of them at once, no more."""
MAX_ASYMMETRY = 0.05
"""Nats per datum by which the error of H alone may move q in one step: small beside `MAX_INCREASE`."""
MAX_MOVES = 3
"""Steps between two draws of points: all rest on the same scores, so their errors add up."""
MIN_EFFICIENCY = 0.5
"""Fraction of the effective rules that must remain after a step for one more on the same points: else new ones pay off."""
KEPT_PER_DRAWN = 8
"""Rules that are kept for each new one in an iteration: their number, and with it the accuracy, grows geometrically."""
WINDOW = 5
"""Latest iterations over which the movement of q counts towards the distance."""
MAX_START = 2.0
"""Further starts are uniform within ± this in each unconstrained coordinate, as in Stan."""
EXACT = 1e-3
"""Fraction of the tolerance below which the fit ends at once, if `CONFIRMING_POINTS` fresh points confirm the slopes."""
CONFIRMING_POINTS = 64
"""Fewer may miss the part of a posterior that is not Gaussian, such as a wall in its tail."""
TINY = 1e-300
"""Keeps denominators positive."""


@dataclass(frozen=True)
class NaturalGradient(Solver):
    r"""Steps along F⁻¹∇ELBO with the Fisher information F of a Gaussian in closed form, so that no system in λ is solved.

    A step of rate ρ changes precision and mean. With g = E_q[∇ log p(x, h)] and H = −E_q[∇² log p(x, h)],

        M' = (1 − ρ) M + ρ H,    μ' = μ + ρ M'⁻¹ g,    q' = N(μ', (the blocks of M' that the family has)⁻¹).

    The mean moves by the whole M, which is Newton's step on the ELBO, also where the family leaves correlations out. For a
    Gaussian target a single step with ρ = 1 reaches the optimum. The first q is the Gaussian at a mode of log p(x, h) with the
    curvature there (`climbed`), if that is the better start: units of the latents make no difference. With more than `MAX_DIM`
    latents for a datum only its mean is moved, by a few steps of L-BFGS.

    An iteration takes at least 2 dim + 1 scores ∇ log p and no second derivatives: H = E_q[Σ⁻¹ (μ − z) ∇ log p(x, z)ᵀ].
    Expectations are over the points of all iterations that are still informative about q, reweighted to it
    (`WeightedRules`): the noise falls as in an average over iterations, without a bias from earlier q. The same points serve
    up to `MAX_MOVES` steps, as long as half of their effective number remains.

    ρ follows Barzilai & Borwein's rule between `MIN_RATE` and `MAX_RATE`: the rate that, by the change of direction since the
    last step, would have left nothing along that direction. It is lower while the error of the points is large. A step that
    raises −ELBO by more than `MAX_INCREASE` is undone, and a quarter of it tried.

    The fit ends when the sum of three terms is below `tolerance`, in nats: the noise of the points, the remaining step, and
    the KL between q now and `WINDOW` iterations ago. This sum is the distance that the fit reports. It can be too small where
    points rarely meet the tails of a posterior, as in a centred hierarchy: reparametrise the model, or lower the tolerance.

    For ``Global`` or, for each datum separately, ``Local``, with MeanField, FullRank or Blocks, of a model with nothing to
    learn; and for Pyro's AutoNormal, AutoDiagonalNormal and AutoMultivariateNormal.

    Args:
        starts: number of points from which a mode is climbed to; the first is the mean of q, the others are random. The fit
            goes on from the one where the Gaussian with the curvature of log p has the highest ELBO.
        tolerance: distance to the best ELBO, in nats, in total over all data.
        max_scores: number of scores that an iteration may take, unless a single rule needs more.

    Reference: Khan & Rue, "The Bayesian learning rule" (2023), equations 12 and 13; Opper & Archambeau, "The variational
    Gaussian approximation revisited" (2009); Barzilai & Borwein, "Two-point step size gradient methods" (1988).
    """

    tolerance: float = 0.01
    max_scores: int = 4096
    starts: int = 1

    def __post_init__(self) -> None:
        check_fields(self)
        if not self.tolerance > 0:
            raise ValueError(f"NaturalGradient: tolerance must be positive, but is {self.tolerance}.")
        check_count(max_scores=self.max_scores, starts=self.starts)

    def check(self, task: SolverTask) -> None:
        guide = unwrap(task.guide)
        of_suite = isinstance(guide, (Global, Local)) and isinstance(guide.family, (MeanField, FullRank))
        if of_suite:
            check_only_q(self, task)
        if gaussian_guide(task) is None:
            raise ValueError(
                "NaturalGradient has the Fisher information of MeanField, FullRank and Blocks in closed form, for Global and "
                "Local, and of Pyro's AutoNormal, AutoDiagonalNormal and AutoMultivariateNormal, of a model with nothing to "
                f"learn, but the guide is {guide_name(guide)}: use torch's Adam with StickingTheLanding or TraceELBO, which "
                "take any guide, or FixedDraws, which takes any Gaussian one."
            )

    def solve(self, task: SolverTask, *, steps: int) -> Solution:
        self.check(task)
        target = gaussian_guide(task)
        assert target is not None
        start = target.read()
        max_rules = max(1, self.max_scores // (2 * start.loc.shape[-1]))
        data = start.loc[..., 0].numel()
        rules = WeightedRules(task, start, target)
        walk = _Walk(rules)
        start, q, max_nelbo = self._started(task, target, start)
        kept, trust = start, 1.0
        recent: list[GaussianState] = []
        losses: list[float] = []
        for _ in range(steps):
            nelbo = rules.draw(q, min(max_rules, max(1, rules.rules // KEPT_PER_DRAWN)))
            if not nelbo <= max_nelbo and trust > MIN_TRUST:
                if isfinite(nelbo):
                    rules.undo()
                losses.append(losses[-1] if losses else max_nelbo)
                if not rules.batches:
                    q, max_nelbo = kept, inf
                    continue
                trust /= 4
                walk.direction = None
                q = walk.moved(kept, trust, moves=1)
            elif not isfinite(nelbo):
                return Solution.diverged(losses)
            else:
                losses.append(nelbo)
                kept, trust = q, min(1.0, 2 * trust)
                q = walk.moved(kept, trust, moves=MAX_MOVES)
            max_nelbo = losses[-1] + MAX_INCREASE if walk.length > MAX_INCREASE else inf
            target.write(q)
            recent = [*recent[1 - WINDOW :], kept]
            exact = max(walk.remaining, walk.length) < EXACT * self.tolerance
            if exact and isfinite(rules.draw(q, ceil(CONFIRMING_POINTS / q.loc.shape[-1]))) and rules.misfit < self.tolerance:
                return Solution.met(losses, walk.remaining / data)
            if len(recent) == WINDOW and (distance := walk.remaining + q.kl(recent[0])) < self.tolerance:
                if (lower := _off_saddle(q, walk.slopes)) is None:
                    return Solution.met(losses, distance / data)
                q, recent = lower, []
            if time.perf_counter() > task.deadline:
                return Solution.timed_out(losses, walk.remaining / data)
        return Solution.ran_out(losses, walk.remaining / data)

    def _started(
        self, task: SolverTask, target: GaussianGuide, start: GaussianState
    ) -> tuple[GaussianState, GaussianState, float]:
        """The start to fall back to, the first q, and the −ELBO above which the former is the better one.

        The first q is the best of those on the climbs to a mode from `starts` points, if it is better than the start.
        """
        if start.loc.shape[-1] > MAX_DIM:
            return start, *centred(task, start, target)
        scores = PackedScores(task.model, target.latents, task.args)
        size = (self.starts - 1, *start.loc.shape)
        elsewhere = MAX_START * (2 * torch.rand(size, dtype=start.loc.dtype) - 1)
        climbs = [q for loc in (start.loc, *elsewhere) for q in climbed(scores, start, loc, deadline=task.deadline)]
        best, _ = best_of(scores, [start, *climbs])
        if best is start:
            return start, *centred(task, start, target)
        return best, best, inf


class _Walk:
    """Steps of q with the points that are kept.

    Attributes:
        slopes: at the start of the last step.
        direction: of the last step with ρ = 1, or None.
        length: of the last steps, Σ |step|² in the Fisher information, in nats.
        remaining: estimated nats to the optimum: the cost of the points' noise plus the steps not yet taken.
    """

    slopes: Slopes

    def __init__(self, rules: WeightedRules) -> None:
        self.rules = rules
        self.direction: GaussianState | None = None
        self.rate = self.step = 1.0
        self.length = self.remaining = inf

    def moved(self, q: GaussianState, trust: float, *, moves: int) -> GaussianState:
        """q after at most `moves` steps, each times `trust`; fewer if too few effective rules remain."""
        self.length = min_rules = 0.0
        for move in range(moves):
            slopes = self.rules.slopes(q, min_rules=min_rules)
            if slopes is None:
                break
            self.slopes, min_rules = slopes, MIN_EFFICIENCY * slopes.effective_rules
            direction = _stepped(q, slopes, 1.0).minus(q)
            length = q.inner(direction, direction)
            if self.direction is not None and (move or length < q.inner(self.direction, self.direction)):
                self._adapt_rate(q, direction, self.direction)
            self.step = min(self.rate, (MAX_ASYMMETRY / (slopes.asymmetry + TINY)) ** 0.5) * trust
            self.length += length * self.step**2
            self.remaining = slopes.noise * max(1.0, self.rate**2) + length * self.rate**2 / 2
            q, self.direction = _stepped(q, slopes, self.step), direction
        return q

    def _adapt_rate(self, q: GaussianState, direction: GaussianState, before: GaussianState) -> None:
        """Barzilai and Borwein's rule, from the fraction of the last direction that is left after its step."""
        left = q.inner(direction, before) / (q.inner(before, before) + TINY)
        self.rate = max(MIN_RATE, min(MAX_RATE, self.step / (1 - left))) if left < 1 else MAX_RATE


def _stepped(q: GaussianState, slopes: Slopes, rate: float) -> GaussianState:
    """q after one step. The eigenvalues of M' relative to M are interpolated linearly up to ρ = 1, geometrically beyond.

    Their absolute values are taken, so that the mean also ascends along directions of negative curvature.
    """
    root, values, vectors = _relative(q, slopes)
    values = 1 - rate + rate * values if rate <= 1 else values.abs() ** rate
    values, turned = values.abs().clamp(min=MIN_EIGENVALUE), root @ vectors
    precision = (turned * values.unsqueeze(-2)) @ turned.mT
    inverse = torch.linalg.solve_triangular(root.mT, vectors, upper=True)
    newton = (inverse / values.unsqueeze(-2)) @ (inverse.mT @ slopes.gradient.unsqueeze(-1))
    return q._replace(loc=q.loc + rate * newton.squeeze(-1), precision=(precision + precision.mT) / 2)


def _off_saddle(q: GaussianState, slopes: Slopes) -> GaussianState | None:
    """q with its mean moved by one sd along the most negative eigenvalue of H, or None if H is positive semidefinite.

    Steps use absolute eigenvalues, so they also come to rest at a saddle, where g is zero and an eigenvalue of H is minus M's.
    """
    root, values, vectors = _relative(q, slopes)
    saddle = values[..., :1] < 0
    if not saddle.any():
        return None
    return q._replace(loc=q.loc + saddle * torch.linalg.solve_triangular(root.mT, vectors[..., :1], upper=True).squeeze(-1))


def _relative(q: GaussianState, slopes: Slopes) -> tuple[Tensor, Tensor, Tensor]:
    """The Cholesky factor of M, and eigenvalues and eigenvectors of H relative to M: all eigenvalues are 1 if H = M."""
    root = torch.linalg.cholesky(q.precision)
    half = torch.linalg.solve_triangular(root, slopes.curvature, upper=False)
    return root, *torch.linalg.eigh(torch.linalg.solve_triangular(root, half.mT, upper=False))
