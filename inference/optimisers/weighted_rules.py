"""Expectations under a Gaussian q, estimated from the scores at the points of all earlier q."""

from __future__ import annotations

from math import inf, log
from typing import NamedTuple

import torch
from torch import Tensor

from .base import SolverTask
from .gaussian_guides import GaussianGuide
from .gaussian_state import GaussianState
from .scores import Scores
from .spherical_rules import SphericalRules

__all__ = ["Slopes", "WeightedRules"]

MIN_BATCHES = 8
"""Batches and effective rules from which the scatter of the batches is trusted as an estimate of the error."""
MIN_SCATTER = 0.01
"""Scatter of the scores that every direction is given at least, as a fraction of the mean over directions: few points may
show none by chance."""
MIN_GAIN = 1 + 1e-6
"""Factor by which older batches must raise the effective number of rules to be kept: more than rounding."""
MAX_NUMBERS = 2**25
"""Numbers in the points that are kept: 256 MiB in float64."""
MAX_LOG_RATIO = 300.0
"""Upper bound on the log of a density ratio: the square of the ratio, e^600, is still finite in float64."""
TINY = 1e-300
"""Keeps denominators positive."""


class Slopes(NamedTuple):
    """The slopes of the ELBO at a q, and estimates of their error."""

    gradient: Tensor
    """g = E_q[∇ log p], shape (*batch, dim)."""
    curvature: Tensor
    """H = −E_q[∇² log p], shape (*batch, dim, dim)."""
    noise: float
    """ELBO that their error costs, in nats: its expectation, or an upper bound before there are `MIN_BATCHES` batches."""
    asymmetry: float
    """KL, in nats per datum, by which the error of H moves q in a whole step: estimated from the asymmetric part of H."""
    effective_rules: float
    """Number of rules drawn by q itself that would be as accurate; for the worst datum."""


class _LinearScore(NamedTuple):
    """A linear model of the scores, gradient − curvature (z − loc): exact for a Gaussian posterior."""

    loc: Tensor
    gradient: Tensor
    curvature: Tensor

    def at(self, points: Tensor) -> Tensor:
        return self.gradient - (self.curvature @ (points - self.loc).unsqueeze(-1)).squeeze(-1)

    def residuals(self, root: Tensor, points: Tensor, scores: Tensor) -> Tensor:
        """Scores minus this model, in the space of the noise ε, where points are loc + root ε."""
        return (root.mT @ (scores - self.at(points)).unsqueeze(-1)).squeeze(-1)


class _Batch(NamedTuple):
    """The rules drawn by one q."""

    rules: int
    points: Tensor
    """Shape (K, *batch, dim)."""
    scores: Tensor
    """∇ log p at the points, of the same shape."""
    weight: Tensor
    """Shape (K, *batch); sums to 1 over K."""
    q: GaussianState

    def misfit(self, linear: _LinearScore) -> float:
        """½ E|residuals|² in the space of the noise: nats lost if the scores were taken to be `linear`."""
        squares = linear.residuals(self.q.root, self.points, self.scores).square().sum(-1)
        return float((self.weight.abs() * squares).sum()) / 2


class WeightedRules:
    """Estimates g and H at any q near those that have drawn rules (`SphericalRules`), without new scores.

    An expectation under q is the mean over all rules, with each point z weighted by q(z) / Σ_k a_k q_k(z), where q_k has drawn
    the fraction a_k of the rules. This is unbiased for given q_k, and a weight is at most 1 / a_k times that under the q_k
    that has drawn z.

    A linear model of the scores is the control variate: only its residuals are averaged, so the weights add little error if
    the posterior is nearly Gaussian and none if it is Gaussian. The model is either the last slopes or Σ⁻¹ (μ − z), whichever
    fits the newest scores better. (The last slopes use some of the same points. That biases the next ones, by less the more
    rules there are.) The oldest batches are dropped where the later ones alone have more effective rules.

    By Stein's identity H = E_q[Σ⁻¹ (μ − z) ∇ log p(z)ᵀ], so each entry of H has two estimates, from the scores of its row and
    of its column. They are averaged with weights inverse to the scatter of these scores about the linear model, which halves
    the noise if few directions are far from Gaussian.

    Attributes:
        batches: the rules that are kept.
        log_mixture: log Σ_k a_k q_k at all their points, without the constant.
        linear: the control variate.
        misfit: of `linear`, for the newest batch, in nats.

    Reference: Veach & Guibas, "Optimally combining sampling techniques for Monte Carlo rendering" (1995), the balance
    heuristic.
    """

    def __init__(self, task: SolverTask, q: GaussianState, target: GaussianGuide | None = None) -> None:
        self.task, self.target = task, target
        self.source = SphericalRules(tuple(q.loc.shape[:-1]), q.loc.shape[-1])
        self.batches: list[_Batch] = []
        self.log_mixture = torch.zeros(0)
        self.linear = self.last = _LinearScore(q.loc, torch.zeros_like(q.loc), q.precision)
        self.misfit = inf
        self._before = self.batches, self.log_mixture, self.linear, self.misfit
        self._scores: Scores | None = None

    @property
    def rules(self) -> int:
        """Number of rules that are kept."""
        return sum(batch.rules for batch in self.batches)

    def draw(self, q: GaussianState, rules: int) -> float:
        """Adds a batch of rules drawn by q. Returns −ELBO, estimated from these alone, in nats.

        If a score is not finite, the batch is discarded and the result infinite.
        """
        noise, weight = self.source.draw(rules)
        if self._scores is None or len(self._scores) != len(noise):
            self._scores = Scores(self.task, len(noise), self.target)
        points = q.loc + (q.root @ noise.unsqueeze(-1)).squeeze(-1)
        log_p, scores = self._scores(points)
        nelbo = -float((weight * log_p).sum()) - q.entropy
        if not scores.isfinite().all() or not nelbo < inf:
            return inf
        self._before = self.batches, self.log_mixture, self.linear, self.misfit
        batch = _Batch(rules, points, scores, weight, q)
        own = _LinearScore(q.loc, torch.zeros_like(q.loc), q.precision)
        self.linear = min(self.last, own, key=batch.misfit)
        self.misfit = batch.misfit(self.linear)
        self.batches = [*self.batches, batch]
        self._forget()
        return nelbo

    def undo(self) -> None:
        """Undoes the last draw."""
        self.batches, self.log_mixture, self.linear, self.misfit = self._before

    def slopes(self, q: GaussianState, *, min_rules: float = 0.0) -> Slopes | None:
        """The slopes at q, or None if the points have fewer than `min_rules` effective rules there."""
        root = q.root
        log_q, noise = _log_density(q, torch.cat([batch.points for batch in self.batches]))
        base, ratio = self._base(0), _ratio(log_q, self.log_mixture)
        weight = base * ratio
        effective_rules = self.rules * float(_efficiency(base, ratio).min())
        if not effective_rules >= min_rules:
            return None
        residuals = torch.cat([self.linear.residuals(root, batch.points, batch.scores) for batch in self.batches])
        mean = (weight.unsqueeze(-1) * residuals).sum(0)
        residuals = residuals - mean
        scatter = torch.einsum("k...i,k...,k...j->...ij", residuals, weight.abs(), residuals)
        lengths = [len(batch.points) for batch in self.batches]
        parts = [*zip(*(part.split(lengths) for part in (residuals, weight, noise)), strict=True)]
        g_parts = torch.stack([(w.unsqueeze(-1) * r).sum(0) for r, w, _ in parts])
        raw = torch.stack([torch.einsum("k...i,k...,k...j->...ij", *part) for part in parts])
        h_parts, total = self._symmetric(raw, scatter), raw.sum(0)
        half = torch.linalg.solve_triangular(root.mT, h_parts.sum(0), upper=True)
        g_change = torch.linalg.solve_triangular(root.mT, mean.unsqueeze(-1), upper=True).squeeze(-1)
        curvature = self.linear.curvature - torch.linalg.solve_triangular(root.mT, half.mT, upper=True)
        self.linear = self.last = _LinearScore(q.loc, self.linear.at(q.loc) + g_change, (curvature + curvature.mT) / 2)
        enough, data = min(len(raw), effective_rules) >= MIN_BATCHES, q.loc[..., 0].numel()
        return Slopes(
            self.last.gradient,
            self.last.curvature,
            noise=self._noise(q, root, g_parts, h_parts) if enough else self.misfit,
            asymmetry=float((total - total.mT).square().sum()) / 16 / data if q.loc.shape[-1] > 1 else self.misfit / data,
            effective_rules=effective_rules,
        )

    def _symmetric(self, changes: Tensor, scatter: Tensor) -> Tensor:
        """Symmetric averages of the two estimates of each entry, weighted inversely to the scatter of their scores."""
        if self.rules < 2:
            return (changes + changes.mT) / 2
        values, vectors = torch.linalg.eigh((scatter + scatter.mT) / 2)
        values = values.clamp(min=0) + MIN_SCATTER * values.mean(-1, keepdim=True).clamp(min=TINY)
        turned = vectors.mT @ changes @ vectors
        own, other = values.unsqueeze(-1), values.unsqueeze(-2)
        return vectors @ ((turned * other + turned.mT * own) / (own + other)) @ vectors.mT

    def _noise(self, q: GaussianState, root: Tensor, g_parts: Tensor, h_parts: Tensor) -> float:
        """½ |error of g|² + ¼ |error of H|² in the metric of q, from the scatter of the batches about their mean."""
        share = torch.tensor([batch.rules / self.rules for batch in self.batches], dtype=g_parts.dtype)
        g_error = g_parts - _expanded(share, g_parts) * g_parts.sum(0)
        h_error = (h_parts - _expanded(share, h_parts) * h_parts.sum(0)) * q.blocks
        solved = torch.linalg.solve(root.mT @ q.precision @ root, g_error.unsqueeze(-1)).squeeze(-1)
        return len(share) / (len(share) - 1) * float((g_error * solved).sum() / 2 + h_error.square().sum() / 4)

    def _base(self, first: int) -> Tensor:
        """The weights of the points, from batch `first` on, before they are reweighted to q; they sum to 1."""
        kept = self.batches[first:]
        rules = sum(batch.rules for batch in kept)
        return torch.cat([batch.weight * (batch.rules / rules) for batch in kept])

    def _forget(self) -> None:
        """Drops the oldest batches if that raises the effective number of rules at the newest q."""
        points = torch.cat([batch.points for batch in self.batches])
        log_q = torch.stack([_log_density(batch.q, points)[0] for batch in self.batches])
        best, most_effective, log_mixture = 0, 0.0, log_q[-1]
        for first in reversed(range(len(self.batches))):
            kept = self.batches[first:]
            rules, length = sum(batch.rules for batch in kept), sum(len(batch.points) for batch in kept)
            log_share = torch.tensor([log(batch.rules / rules) for batch in kept], dtype=log_q.dtype)
            mixture = (log_q[first:, -length:] + _expanded(log_share, log_q)).logsumexp(0)
            effective = rules * float(_efficiency(self._base(first), _ratio(log_q[-1, -length:], mixture)).mean())
            gains = effective > MIN_GAIN * most_effective and sum(batch.points.numel() for batch in kept) <= MAX_NUMBERS
            if len(kept) == 1 or gains:
                best, most_effective, log_mixture = first, effective, mixture
        self.batches, self.log_mixture = self.batches[best:], log_mixture


def _log_density(q: GaussianState, points: Tensor) -> tuple[Tensor, Tensor]:
    """log q at points, without the constant; and their noise ε, where points are loc + root ε."""
    root = q.root
    noise = (torch.linalg.inv(root) @ (points - q.loc).unsqueeze(-1)).squeeze(-1)
    return -0.5 * noise.square().sum(-1) - root.diagonal(dim1=-2, dim2=-1).log().sum(-1), noise


def _ratio(log_q: Tensor, log_mixture: Tensor) -> Tensor:
    """q over the mixture. Clamped: if the mixture is far too wide for q, a single point can have a ratio that overflows."""
    return (log_q - log_mixture).clamp(max=MAX_LOG_RATIO).exp()


def _efficiency(base: Tensor, ratio: Tensor) -> Tensor:
    """(Σ b r)² / (Σ b Σ b r²), shape (*batch): 1 if all ratios r are equal. Times the mass of q that the points cover."""
    base = base.abs()
    mass = (base * ratio).sum(0)
    efficiency = mass.square() / (base.sum(0) * (base * ratio.square()).sum(0) + TINY)
    return efficiency * (mass / base.sum(0)).clamp(max=1.0)


def _expanded(values: Tensor, like: Tensor) -> Tensor:
    """A vector along the first axis of `like`, with axes of length 1 after it."""
    return values.reshape(-1, *[1] * (like.dim() - 1))
