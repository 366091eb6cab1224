"""Natural gradients of the ELBO for Gaussian families."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf, isfinite, log, pi
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributions import MultivariateNormal, kl_divergence

from guides import FullRank, Global, Guide, Local, MeanField
from models.gaussian import moments

from ..checks import check_count
from ..isolation import unscoped
from .base import Solution, Solver, Target
from .precisions import block_mask, scale_tril
from .scores import Scores
from .spherical_rules import SphericalRules

__all__ = ["NaturalGradient"]

SHRINK = 1 / 16
"""A step divides no eigenvalue of the precision by more than this: it is far from where its curvature was measured."""
WORSE = 1.0
"""Nats by which a step may lose by its own estimate before it is taken back."""
LEAST_RATE = 2.0**-12
DRIFT, STEADY = 0.5, 0.8
"""Cosines between a step and the last one, above which q still moves, and moves straight on."""
LONGEST = 4.0
CALM = 6
"""Steps whose cosines must be negative in the mean at the end: one is negative by chance though q still drifts."""
FIXED = 1e-3
"""Part of the tolerance below which a step is none."""
TINY = 1e-300
KEEP = 0.8
"""Of the scatter of the scores, at each iteration."""
SHARE = 0.01
"""Part of the mean scatter that every direction counts as having."""


@dataclass(frozen=True)
class NaturalGradient(Solver):
    r"""Steps along F⁻¹∇ELBO, with the Fisher information F of a Gaussian in closed form: no matrix of λ's size is solved.

    In natural parameters the step is one of precision and mean, with g = E_q[∇ log p(x, h)] and H = −E_q[∇² log p(x, h)],

        M' = (1 − ρ) M + ρ H,    μ' = μ + ρ M'⁻¹ g,    q' = N(μ', (the blocks of M' that the family has)⁻¹).

    The mean moves by the whole M, which is Newton's step on the ELBO, also where the family leaves correlations out. For
    ρ = 1 and a Gaussian target one step is the optimum.

    Expectations need 2 dim + 1 scores ∇ log p and no second derivatives: H = E_q[Σ⁻¹ (μ − z) ∇ log p(x, z)ᵀ], by the points of
    `SphericalRules`, which are unbiased, exact where log p is cubic, and better together than one by one. Each entry of H is
    estimated twice, from the score of its row and that of its column; the one whose scores were less scattered about a linear
    function in earlier iterations counts for more, which halves the noise where few directions are far from Gaussian.

    ρ starts at 1. A step that loses more than a nat is taken back, and a quarter of it tried. Once two steps in a row go
    against each other, what moves q is the noise of the points: then ρ is 1/n, which averages over n iterations, and with
    n = 4 each iteration takes twice the points; where steps agree, q still drifts and ρ goes back to 1, or up to 4 while they
    are parallel. It ends when the noise left costs less than `tolerance`. A target far from Gaussian in the guide's space,
    such as a centred hierarchy, is approached slowly, and may be left too early: reparametrise it, or lower the tolerance.
    The distance that the fit claims tells: it is that noise and the KL that q has moved since an iteration well before.

    For ``Global`` or, each datum by itself, ``Local``, with MeanField, FullRank or Blocks, of a model with nothing to learn.

    Args:
        tolerance: nats of the ELBO that the noise may still cost.
        most: scores in an iteration at which doubling ends in any case.

    Reference: Khan & Rue, "The Bayesian learning rule" (2023), equations 12 and 13; Opper & Archambeau, "The variational
    Gaussian approximation revisited" (2009); the points: Genz & Monahan, "Stochastic integration rules for infinite regions"
    (1998), degree 3.
    """

    tolerance: float = 0.01
    most: int = 4096

    def __post_init__(self) -> None:
        if not self.tolerance > 0:
            raise ValueError(f"NaturalGradient: tolerance must be positive, but is {self.tolerance}.")
        check_count(most=self.most)

    def check(self, target: Target) -> None:
        guide = unscoped(target.guide)
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
        guide: Any = unscoped(target.guide)
        at = _State.of(guide.q(target.args[0]))
        blocks = block_mask(guide.family, at.loc)
        most = max(1, self.most // (2 * at.loc.shape[-1]))
        data = at.loc[..., 0].numel()
        rules, weight, rate, stride = 1, 0, 1.0, 1.0
        points = _Points(target, at.loc)
        losses: list[float] = []
        moved, lengths, cosines = inf, [inf], [0.0]
        kept: tuple[_State, _Slopes] | None = None
        before: _State | None = None
        past = [(0, at), (0, at)]
        for _ in range(steps):
            slopes = points.slopes(at, blocks)
            worst = inf if kept is None or moved < WORSE or rate < LEAST_RATE else kept[1].nelbo + WORSE
            if kept is not None and not slopes.within(worst) and rate > LEAST_RATE:
                at, slopes = kept
                rate, stride, weight = rate / 4, 1.0, max(weight, rules)
            else:
                rate = min(1.0, 2 * rate)
                weight += rules
            if not slopes.within(inf):
                return Solution.diverged(losses)
            losses.append(slopes.nelbo)
            kept, step = (at, slopes), rate * stride * rules / weight
            at = _moved(at, slopes, step)
            with torch.no_grad():
                target.parameters[0].copy_(guide.family.inverse(at.loc, scale_tril(at.precision * blocks)))
            direction = _State((at.loc - kept[0].loc) / step, (at.precision - kept[0].precision) / step)
            length = _inner(at, blocks, direction, direction)
            cosine = 0.0
            if before is not None:
                cosine = _inner(at, blocks, direction, before) / (length * _inner(at, blocks, before, before) + TINY) ** 0.5
            before, moved = direction, length * step**2
            lengths.append(length)
            cosines.append(cosine)
            noise = step * max(lengths[-3:]) / 2
            if length < FIXED * self.tolerance:
                return Solution.met(losses, length / data)
            if noise < self.tolerance and sum(cosines[-CALM:]) < 0:
                far = past[len(losses) - past[1][0] >= len(losses) / 4][1]
                return Solution.met(losses, (noise + _kl(at, far, blocks)) / data)
            if len(losses).bit_count() == 1:
                past = [past[1], (len(losses), at)]
            if cosine > DRIFT or len(losses) == 1 or min(losses[-2] - losses[-1], length / 2) > WORSE:
                weight, stride = 0, min(LONGEST, 1.5 * stride) if cosine > STEADY and rate == 1 else 1.0
            elif cosine < 0:
                stride = 1.0
                if weight >= 4 * rules and rules < most:
                    rules = min(2 * rules, most)
                    points.take(rules)
        return Solution.ran_out(losses)


class _State(NamedTuple):
    """The mean of q, shape (*batch, dim), and M, shape (*batch, dim, dim), whose blocks are the precision of q."""

    loc: Tensor
    precision: Tensor

    @classmethod
    def of(cls, q: Any) -> _State:
        loc, covariance = moments(q)
        return cls(loc.detach().double(), torch.linalg.inv(covariance.detach().double()))


class _Slopes(NamedTuple):
    """−ELBO, g and H at a state, the expectations by points."""

    nelbo: float
    gradient: Tensor
    curvature: Tensor

    def within(self, most: float) -> bool:
        """Whether all is finite, and −ELBO at most this."""
        finite = self.gradient.isfinite().all() and self.curvature.isfinite().all()
        return isfinite(self.nelbo) and self.nelbo <= most and bool(finite)


class _Points:
    """Expectations over q by the mean of `rules` rules around the mean of q, which they share."""

    def __init__(self, target: Target, loc: Tensor) -> None:
        self.target = target
        self.dim, self.batch = loc.shape[-1], loc.shape[:-1]
        self.source = SphericalRules(tuple(self.batch), self.dim)
        self.scatter = torch.zeros(*self.batch, self.dim, self.dim, dtype=torch.float64)
        self.judged = 0
        self.take(1)

    def take(self, rules: int) -> None:
        """Uses so many rules from now on."""
        self.rules = rules
        self.scores = Scores(self.target, 2 * self.dim * rules + 1)

    def slopes(self, at: _State, blocks: Tensor) -> _Slopes:
        root = scale_tril(at.precision * blocks)
        noise, weight = self.source.draw(self.rules)
        log_p, score = self.scores(at.loc + (root @ noise.unsqueeze(-1)).squeeze(-1))
        arms, weights = noise[1:].chunk(2)[0], weight[1:].chunk(2)[0]
        one, other = score[1:].chunk(2)
        # What M, the curvature so far, does not explain of the scores' odd part, in the space of the noise.
        odd = (root.mT @ (one - other).unsqueeze(-1)) / 2
        left = (odd + root.mT @ at.precision @ root @ arms.unsqueeze(-1)).squeeze(-1)
        change = self._symmetric(2 * torch.einsum("k...i,k...,k...j->...ij", left, weights, arms), root)
        self._learn(left, root)
        half = torch.linalg.solve_triangular(root.mT, change, upper=True)
        curvature = at.precision - torch.linalg.solve_triangular(root.mT, half.mT, upper=True)
        entropy = root.diagonal(dim1=-2, dim2=-1).log().sum() + 0.5 * at.loc.numel() * (1 + log(2 * pi))
        gradient = (weight.unsqueeze(-1) * score).sum(0)
        return _Slopes(float(-(weight * log_p).sum() - entropy), gradient, (curvature + curvature.mT) / 2)

    def _symmetric(self, change: Tensor, root: Tensor) -> Tensor:
        """The symmetric matrix that is nearest, its rows weighed by the scatter that earlier rules have seen.

        Entry (i, j) is estimated twice, by the noise of score i and by that of score j: the quieter one counts for more.
        """
        if self.judged < 2:
            return (change + change.mT) / 2
        spread = root.mT @ self.scatter @ root
        values, vectors = torch.linalg.eigh((spread + spread.mT) / 2)
        values = values.clamp(min=0) + SHARE * values.mean(-1, keepdim=True).clamp(min=TINY)
        turned = vectors.mT @ change @ vectors
        own, other = values.unsqueeze(-1), values.unsqueeze(-2)
        return vectors @ ((turned * other + turned.mT * own) / (own + other)) @ vectors.mT

    def _learn(self, left: Tensor, root: Tensor) -> None:
        scores = torch.linalg.solve_triangular(root.mT, left.unsqueeze(-1), upper=True).squeeze(-1)
        self.scatter = KEEP * self.scatter + torch.einsum("k...i,k...j->...ij", scores, scores) / len(left)
        self.judged += self.rules


def _moved(at: _State, slopes: _Slopes, rate: float) -> _State:
    """The step; an eigenvalue of M'M⁻¹ that is negative counts as positive, for a step uphill is none."""
    root = torch.linalg.cholesky(at.precision)
    half = torch.linalg.solve_triangular(root, slopes.curvature, upper=False)
    relative = torch.linalg.solve_triangular(root, half.mT, upper=False)
    values, vectors = torch.linalg.eigh(relative)
    values = 1 - rate + rate * values if rate <= 1 else values.abs() ** rate
    values, turned = values.abs().clamp(min=SHRINK), root @ vectors
    precision = (turned * values.unsqueeze(-2)) @ turned.mT
    inverse = torch.linalg.solve_triangular(root.mT, vectors, upper=True)
    newton = (inverse / values.unsqueeze(-2)) @ (inverse.mT @ slopes.gradient.unsqueeze(-1))
    return _State(at.loc + rate * newton.squeeze(-1), (precision + precision.mT) / 2)


def _kl(at: _State, past: _State, blocks: Tensor) -> float:
    """KL(q ‖ q in the past), in nats."""
    one, other = (MultivariateNormal(s.loc, precision_matrix=s.precision * blocks) for s in (at, past))
    return float(kl_divergence(one, other).sum())


def _inner(at: _State, blocks: Tensor, one: _State, other: _State) -> float:
    """The inner product of two directions in the Fisher information of q, the mean's with the whole M."""
    mean = (one.loc.unsqueeze(-2) @ at.precision @ other.loc.unsqueeze(-1)).sum()
    precision = at.precision * blocks
    parts = [torch.linalg.solve(precision, part.precision * blocks) for part in (one, other)]
    return float(mean + 0.5 * (parts[0] * parts[1].mT).sum())
