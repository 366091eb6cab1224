"""Batch and match: a full-rank Gaussian from scores, by closed-form updates."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf, isfinite
from typing import Any

import torch
from torch import Tensor
from torch.distributions import MultivariateNormal, kl_divergence

from guides import FullRank, Global, Guide, Local

from ..programs.bound import unwrap
from .base import Solution, Solver, Target
from .scores import Scores

__all__ = ["BatchAndMatch"]


@dataclass(frozen=True)
class BatchAndMatch(Solver):
    r"""Matches the scores ∇ log q and ∇ log p(x, h) at draws of q, in the covariance of q.

    Each iteration draws z_b ~ q = N(μ, Σ), computes their scores g_b, and moves to the minimum of the score-based divergence
    plus KL(q_t ‖ q) / η. With means z̄, ḡ and covariances C, Γ of both,

        U = η Γ + η/(1 + η) ḡ ḡᵀ,   V = Σ + η C + η/(1 + η) (μ − z̄)(μ − z̄)ᵀ,   Σ' U Σ' + Σ' = V,
        μ' = (μ + η (Σ' ḡ + z̄)) / (1 + η).

    η starts at draws · dim and doubles as long as the divergence falls in every iteration; after that it is divided by the
    number of iterations without a new minimum, as the paper divides by that of all: then noise is what is left.

    For a Gaussian target the posterior is the fixed point of every batch. For another target the optimum is that of the
    score-based divergence, not of the ELBO. Works in unconstrained space, for ``Global(model, FullRank())`` and, each datum by
    itself, ``Local(model, FullRank())``, of a model with nothing to learn.

    Args:
        draws: z_b in a batch; twice the dimension plus 2 by default.
        tolerance: stops when an iteration changes q by less than this symmetrised KL, in nats.

    Reference: Cai, Modi, Pillaud-Vivien, Margossian, Gower, Blei & Saul, "Batch and match: black-box variational inference
    with a score-based divergence" (2024), equations 9–13.
    """

    draws: int | None = None
    tolerance: float = 1e-10

    def __post_init__(self) -> None:
        if self.draws is not None and self.draws < 2:
            raise ValueError(f"BatchAndMatch: draws must be at least 2, for a covariance, but is {self.draws}.")
        if not self.tolerance >= 0:
            raise ValueError(f"BatchAndMatch: tolerance must not be negative, but is {self.tolerance}.")

    def check(self, target: Target) -> None:
        guide = unwrap(target.guide)
        if not (isinstance(guide, (Global, Local)) and type(guide.family) is FullRank):
            family = f"({type(guide.family).__name__})" if isinstance(guide, Guide) else ""
            raise ValueError(
                f"BatchAndMatch sets the mean and covariance of a Gaussian, so it needs Global(model, FullRank()) or "
                f"Local(model, FullRank()), but the guide is {type(guide).__name__}{family}: use FixedDraws or torch's Adam."
            )
        if len(target.parameters) != 1:
            raise ValueError(
                "BatchAndMatch finds q alone, but this model has parameters to learn too: use FixedDraws or torch's Adam."
            )

    def solve(self, target: Target, *, steps: int) -> Solution:
        self.check(target)
        guide: Any = unwrap(target.guide)
        q = _double(guide.q(target.args[0]))
        draws = 2 * q.event_shape[0] + 2 if self.draws is None else self.draws
        scores = Scores(target, draws)
        losses: list[float] = []
        rate, failures, best = float(draws * q.event_shape[0]), 0, inf
        for _ in range(steps):
            z = q.sample((draws,))
            log_p, score = scores(z)
            nelbo = float((q.log_prob(z) - log_p).sum() / draws)
            if not (isfinite(nelbo) and bool(score.isfinite().all())):
                return Solution.diverged(losses)
            losses.append(nelbo)
            mismatch = _mismatch(q, z, score)
            failures += mismatch >= best
            rate *= 1.0 if failures else 2.0
            best = min(best, mismatch)
            new = _matched(q, z, score, rate / (1 + failures))
            with torch.no_grad():
                target.parameters[0].copy_(guide.family.inverse(new.loc, new.scale_tril))
            change = float((kl_divergence(new, q) + kl_divergence(q, new)).sum())
            q = new
            if change < self.tolerance:
                return Solution.met(losses)
        return Solution.ran_out(losses)


def _matched(q: MultivariateNormal, z: Tensor, scores: Tensor, rate: float) -> MultivariateNormal:
    """The update in closed form. With V = L Lᵀ and Lᵀ U L = Q diag(d) Qᵀ, Σ' = L Q diag(2 / (1 + √(1 + 4d))) Qᵀ Lᵀ."""
    mean, score = z.mean(0), scores.mean(0)
    centred, spread = z - mean, scores - score
    covariance = torch.einsum("b...i,b...j->...ij", centred, centred) / len(z)
    gamma = torch.einsum("b...i,b...j->...ij", spread, spread) / len(z)
    damped = rate / (1 + rate)
    u = rate * gamma + damped * _outer(score)
    v = q.covariance_matrix + rate * covariance + damped * _outer(q.loc - mean)
    root = torch.linalg.cholesky(v)
    values, vectors = torch.linalg.eigh(root.mT @ u @ root)
    half = root @ vectors * (2 / (1 + (1 + 4 * values.clamp(min=0)).sqrt())).sqrt().unsqueeze(-2)
    sigma = half @ half.mT
    loc = (q.loc + rate * ((sigma @ score.unsqueeze(-1)).squeeze(-1) + mean)) / (1 + rate)
    return MultivariateNormal(loc, scale_tril=torch.linalg.cholesky(sigma), validate_args=False)


def _mismatch(q: MultivariateNormal, z: Tensor, scores: Tensor) -> float:
    """The score-based divergence E_q ‖∇ log q − ∇ log p‖² in the covariance of q, from the batch."""
    gap = scores.unsqueeze(-1) + torch.cholesky_solve((z - q.loc).unsqueeze(-1), q.scale_tril)
    return float((q.scale_tril.mT @ gap).square().sum() / len(z))


def _outer(vector: Tensor) -> Tensor:
    return vector.unsqueeze(-1) * vector.unsqueeze(-2)


def _double(q: Any) -> MultivariateNormal:
    return MultivariateNormal(q.loc.detach().double(), scale_tril=q.scale_tril.detach().double(), validate_args=False)
