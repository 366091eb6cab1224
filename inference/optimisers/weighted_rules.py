"""Expectations under a Gaussian q from the scores at all points so far, which earlier q have drawn."""

from __future__ import annotations

from math import inf, log
from typing import NamedTuple

import torch
from torch import Tensor

from .base import Target
from .gaussian_state import GaussianState
from .scores import Scores
from .spherical_rules import SphericalRules

__all__ = ["Slopes", "WeightedRules"]

FEW = 8
"""Batches from which their scatter says how far their mean is off."""
SHARE = 0.01
"""Part of the mean scatter of the scores that every direction counts as having."""
MORE = 1 + 1e-6
"""How much more older batches must be worth than those after them alone: more than by rounding."""
MOST = 2**25
"""Numbers in the points that are kept."""
LARGEST = 300.0
"""Of the logarithm of a weight: its square is still a number."""
TINY = 1e-300


class Slopes(NamedTuple):
    """The slopes of the ELBO at a q, and what is known of their error."""

    gradient: Tensor
    """g = E_q[∇ log p], shape (*batch, dim)."""
    curvature: Tensor
    """H = −E_q[∇² log p], shape (*batch, dim, dim)."""
    noise: float
    """The nats of the ELBO that their error costs at most, or, by eight batches or more, in expectation."""
    error: float
    """The nats per datum that a whole step moves q by error, about, by what is not symmetric in the estimate of H."""
    effective: float
    """The number of rules by q itself that would be as good, about; for the worst datum."""


class _Line(NamedTuple):
    """A linear function for the scores: gradient − curvature (z − loc)."""

    loc: Tensor
    gradient: Tensor
    curvature: Tensor

    def at(self, points: Tensor) -> Tensor:
        return self.gradient - (self.curvature @ (points - self.loc).unsqueeze(-1)).squeeze(-1)

    def rest(self, root: Tensor, points: Tensor, scores: Tensor) -> Tensor:
        """What it does not explain, in the space of the noise."""
        return (root.mT @ (scores - self.at(points)).unsqueeze(-1)).squeeze(-1)


class _Batch(NamedTuple):
    """Rules that one q has drawn."""

    rules: int
    points: Tensor
    """Shape (K, *batch, dim)."""
    scores: Tensor
    weight: Tensor
    """Shape (K, *batch); its sum over K is 1."""
    at: GaussianState

    def surprise(self, line: _Line) -> float:
        """½ E|scores less the line|² in the space of the noise: what would be lost if they were this line, in nats."""
        return float((self.weight.abs() * line.rest(self.at.root, self.points, self.scores).square().sum(-1)).sum()) / 2


class WeightedRules:
    """g and H at any q near those that have drawn rules (`SphericalRules`), without new scores.

    An expectation under q is the mean over all rules, each point z weighted by q(z) / Σ_k a_k q_k(z), where the k-th of the q
    that have drawn has drawn the part a_k of the rules: for given q_k it is unbiased, and no weight exceeds the one that z
    has by its own q, over a_k. Only what is left of the scores after a linear function is averaged, so that the weights add
    the less error the more the posterior is Gaussian, and for a Gaussian none: the last slopes, or Σ⁻¹ (μ − z), whichever
    explains the newest scores better. (The last slopes rest on some of the same points, which biases the next by a part that
    falls as the number of rules grows.) Batches of rules are forgotten, the oldest first, where those after them are worth
    more by themselves: by the effective number of rules.

    Each entry of H is estimated twice, from the score of its row and that of its column; the one whose scores are less
    scattered about that linear function counts for more, which halves the noise where few directions are far from Gaussian.

    Reference: Veach & Guibas, "Optimally combining sampling techniques for Monte Carlo rendering" (1995), the balance
    heuristic.
    """

    def __init__(self, target: Target, at: GaussianState) -> None:
        self.target = target
        self.source = SphericalRules(tuple(at.loc.shape[:-1]), at.loc.shape[-1])
        self.batches: list[_Batch] = []
        self.logs = torch.zeros(0)
        self.line = self.last = _Line(at.loc, torch.zeros_like(at.loc), at.precision)
        self.surprise = inf
        self._before = self.batches, self.logs, self.line, self.surprise
        self._scores: Scores | None = None

    @property
    def rules(self) -> int:
        """How many are kept."""
        return sum(batch.rules for batch in self.batches)

    def draw(self, at: GaussianState, rules: int) -> float:
        """Adds a batch of rules by q. Returns −ELBO by these alone; if a score is not finite it is inf, and none is added."""
        noise, weight = self.source.draw(rules)
        if self._scores is None or len(self._scores) != len(noise):
            self._scores = Scores(self.target, len(noise))
        points = at.loc + (at.root @ noise.unsqueeze(-1)).squeeze(-1)
        log_p, scores = self._scores(points)
        nelbo = -float((weight * log_p).sum()) - at.entropy
        if not scores.isfinite().all() or not nelbo < inf:
            return inf
        self._before = self.batches, self.logs, self.line, self.surprise
        batch = _Batch(rules, points, scores, weight, at)
        own = _Line(at.loc, torch.zeros_like(at.loc), at.precision)
        self.line = min(self.last, own, key=batch.surprise)
        self.surprise = batch.surprise(self.line)
        self.batches = [*self.batches, batch]
        self._forget()
        return nelbo

    def undo(self) -> None:
        """Takes the last draw back."""
        self.batches, self.logs, self.line, self.surprise = self._before

    def slopes(self, at: GaussianState, *, enough: float = 0.0) -> Slopes | None:
        """The slopes at q, or None if the points are worth less than so many rules there."""
        root = at.root
        log_q, noise = _density(at, torch.cat([batch.points for batch in self.batches]))
        base, ratio = self._base(0), _ratio(log_q, self.logs)
        weight = base * ratio
        effective = self.rules * float(_efficiency(base, ratio).min())
        if not effective >= enough:
            return None
        rest = torch.cat([self.line.rest(root, batch.points, batch.scores) for batch in self.batches])
        mean = (weight.unsqueeze(-1) * rest).sum(0)
        rest = rest - mean
        scatter = torch.einsum("k...i,k...,k...j->...ij", rest, weight.abs(), rest)
        lengths = [len(batch.points) for batch in self.batches]
        parts = [*zip(*(part.split(lengths) for part in (rest, weight, noise)), strict=True)]
        pulls = torch.stack([(w.unsqueeze(-1) * r).sum(0) for r, w, _ in parts])
        raw = torch.stack([torch.einsum("k...i,k...,k...j->...ij", *part) for part in parts])
        changes, total = self._symmetric(raw, scatter), raw.sum(0)
        whole = root.mT @ at.precision @ root
        known, data = min(len(raw), effective) >= FEW, at.loc[..., 0].numel()
        half = torch.linalg.solve_triangular(root.mT, changes.sum(0), upper=True)
        pull = torch.linalg.solve_triangular(root.mT, mean.unsqueeze(-1), upper=True).squeeze(-1)
        curvature = self.line.curvature - torch.linalg.solve_triangular(root.mT, half.mT, upper=True)
        self.line = self.last = _Line(at.loc, self.line.at(at.loc) + pull, (curvature + curvature.mT) / 2)
        return Slopes(
            self.last.gradient,
            self.last.curvature,
            noise=self._noise(pulls, changes, whole, at.blocks) if known else self.surprise,
            error=float((total - total.mT).square().sum()) / 16 / data if at.loc.shape[-1] > 1 else self.surprise / data,
            effective=effective,
        )

    def _symmetric(self, changes: Tensor, scatter: Tensor) -> Tensor:
        """The symmetric matrices that are nearest, their rows weighed by the scatter of the scores."""
        if self.rules < 2:
            return (changes + changes.mT) / 2
        values, vectors = torch.linalg.eigh((scatter + scatter.mT) / 2)
        values = values.clamp(min=0) + SHARE * values.mean(-1, keepdim=True).clamp(min=TINY)
        turned = vectors.mT @ changes @ vectors
        own, other = values.unsqueeze(-1), values.unsqueeze(-2)
        return vectors @ ((turned * other + turned.mT * own) / (own + other)) @ vectors.mT

    def _noise(self, pulls: Tensor, changes: Tensor, whole: Tensor, blocks: Tensor) -> float:
        """½ |error of g|² + ¼ |error of H|², as q's space has it, by the scatter of the batches about their mean."""
        part = torch.tensor([batch.rules / self.rules for batch in self.batches], dtype=pulls.dtype)
        off = pulls - _spread(part, pulls) * pulls.sum(0)
        bent = (changes - _spread(part, changes) * changes.sum(0)) * blocks
        turned = torch.linalg.solve(whole, off.unsqueeze(-1)).squeeze(-1)
        return len(part) / (len(part) - 1) * float((off * turned).sum() / 2 + bent.square().sum() / 4)

    def _base(self, first: int) -> Tensor:
        """The weights of the points, from the first batch on, if each stood for its own q."""
        kept = self.batches[first:]
        rules = sum(batch.rules for batch in kept)
        return torch.cat([batch.weight * (batch.rules / rules) for batch in kept])

    def _forget(self) -> None:
        """Drops the oldest batches where that raises the effective number of rules at the q that was the last to draw."""
        points = torch.cat([batch.points for batch in self.batches])
        logs = torch.stack([_density(batch.at, points)[0] for batch in self.batches])
        best, worth, mixed = 0, 0.0, logs[-1]
        for first in reversed(range(len(self.batches))):
            kept = self.batches[first:]
            rules, count = sum(batch.rules for batch in kept), sum(len(batch.points) for batch in kept)
            share = torch.tensor([log(batch.rules / rules) for batch in kept], dtype=logs.dtype)
            mix = (logs[first:, -count:] + _spread(share, logs)).logsumexp(0)
            found = rules * float(_efficiency(self._base(first), _ratio(logs[-1, -count:], mix)).mean())
            if len(kept) == 1 or (found > MORE * worth and sum(batch.points.numel() for batch in kept) <= MOST):
                best, worth, mixed = first, found, mix
        self.batches, self.logs = self.batches[best:], mixed


def _density(at: GaussianState, points: Tensor) -> tuple[Tensor, Tensor]:
    """log q at points, but for a constant; the points in the space of the noise."""
    root = at.root
    noise = (torch.linalg.inv(root) @ (points - at.loc).unsqueeze(-1)).squeeze(-1)
    return -0.5 * noise.square().sum(-1) - root.diagonal(dim1=-2, dim2=-1).log().sum(-1), noise


def _ratio(log_q: Tensor, logs: Tensor) -> Tensor:
    """q over the mixture; a mixture that is far too wide has points that no number can weigh, nor has to."""
    return (log_q - logs).clamp(max=LARGEST).exp()


def _efficiency(base: Tensor, ratio: Tensor) -> Tensor:
    """(Σ b r)² / Σ b Σ b r²: 1 if the ratios r are equal, less the part of q that has no points; shape (*batch)."""
    base = base.abs()
    mass = (base * ratio).sum(0)
    found = mass.square() / (base.sum(0) * (base * ratio.square()).sum(0) + TINY)
    return found * (mass / base.sum(0)).clamp(max=1.0)


def _spread(values: Tensor, over: Tensor) -> Tensor:
    """A vector along the first axis of what it is to be broadcast over."""
    return values.reshape(-1, *[1] * (over.dim() - 1))
