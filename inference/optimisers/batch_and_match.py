"""Batch and match: a full-rank Gaussian from scores, by closed-form updates."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf, isfinite
from typing import Any

import torch
from torch import Tensor
from torch.distributions import MultivariateNormal, kl_divergence

from guides import FullRank, Global, Local

from ..programs.arguments import check_fields
from ..programs.bound import unwrap
from .base import Solution, Solver, SolverTask, check_only_q, guide_name
from .scores import Scores

__all__ = ["BatchAndMatch"]


@dataclass(frozen=True)
class BatchAndMatch(Solver):
    r"""Matches the scores ∇ log q and ∇ log p(x, h) at draws of q, in the metric of q's covariance.

    Minimises the score-based divergence E_q[(∇ log q − ∇ log p)ᵀ Σ (∇ log q − ∇ log p)]. Each iteration draws
    z_b ~ q = N(μ, Σ), computes their scores g_b = ∇ log p(x, z_b), and moves to the minimum of the divergence, estimated from
    the batch, plus (2 / η) KL(q ‖ q'). With means z̄, ḡ and covariances C, Γ of the draws and scores,

        U = η Γ + η/(1 + η) ḡ ḡᵀ,   V = Σ + η C + η/(1 + η) (μ − z̄)(μ − z̄)ᵀ,   Σ' U Σ' + Σ' = V,
        μ' = (μ + η (Σ' ḡ + z̄)) / (1 + η).

    The rate η starts at draws · dim and doubles while the divergence falls in every iteration. From the first iteration
    without a new minimum on, it is fixed and divided by 1 + the number of such iterations, which averages the noise. (The
    paper divides by the number of all iterations.)

    For a Gaussian target the posterior is the fixed point of every batch. For another target the optimum is that of the
    score-based divergence, not of the ELBO. Works in unconstrained space, for ``Global(model, FullRank())`` and, for each
    datum separately, ``Local(model, FullRank())``, of a model with nothing to learn.

    Args:
        draws: number of draws z_b in a batch; by default 2 dim + 2.
        tolerance: stops when an iteration changes q by less than this symmetrised KL, in nats.

    Reference: Cai, Modi, Pillaud-Vivien, Margossian, Gower, Blei & Saul, "Batch and match: black-box variational inference
    with a score-based divergence" (2024), equations 9–13.
    """

    draws: int | None = None
    tolerance: float = 1e-10

    def __post_init__(self) -> None:
        check_fields(self)
        if self.draws is not None and self.draws < 2:
            raise ValueError(f"BatchAndMatch: draws must be at least 2, for a covariance, but is {self.draws}.")
        if not self.tolerance >= 0:
            raise ValueError(f"BatchAndMatch: tolerance must not be negative, but is {self.tolerance}.")

    def check(self, task: SolverTask) -> None:
        guide = unwrap(task.guide)
        if not (isinstance(guide, (Global, Local)) and type(guide.family) is FullRank):
            raise ValueError(
                f"BatchAndMatch sets the mean and covariance of a Gaussian, so it needs Global(model, FullRank()) or "
                f"Local(model, FullRank()), but the guide is {guide_name(guide)}: use FixedDraws or torch's Adam."
            )
        check_only_q(self, task)

    def solve(self, task: SolverTask, *, steps: int) -> Solution:
        self.check(task)
        guide: Any = unwrap(task.guide)
        q = _in_float64(guide.q(task.args[0]))
        draws = 2 * q.event_shape[0] + 2 if self.draws is None else self.draws
        scores_at = Scores(task, draws)
        losses: list[float] = []
        rate, failures, min_mismatch = float(draws * q.event_shape[0]), 0, inf
        for _ in range(steps):
            z = q.sample((draws,))
            log_p, scores = scores_at(z)
            nelbo = float((q.log_prob(z) - log_p).sum() / draws)
            if not (isfinite(nelbo) and bool(scores.isfinite().all())):
                return Solution.diverged(losses)
            losses.append(nelbo)
            mismatch = _mismatch(q, z, scores)
            failures += mismatch >= min_mismatch
            rate *= 1.0 if failures else 2.0
            min_mismatch = min(min_mismatch, mismatch)
            new = _matched(q, z, scores, rate / (1 + failures))
            with torch.no_grad():
                task.parameters[0].copy_(guide.family.inverse(new.loc, new.scale_tril))
            change = float((kl_divergence(new, q) + kl_divergence(q, new)).sum())
            q = new
            if change < self.tolerance:
                return Solution.met(losses)
        return Solution.ran_out(losses)


def _matched(q: MultivariateNormal, z: Tensor, scores: Tensor, rate: float) -> MultivariateNormal:
    """The updated q, in closed form.

    With V = L Lᵀ and Lᵀ U L = Q diag(d) Qᵀ, Σ' = L Q diag(2 / (1 + √(1 + 4d))) Qᵀ Lᵀ.
    """
    z_mean, score_mean = z.mean(0), scores.mean(0)
    z_centred, scores_centred = z - z_mean, scores - score_mean
    c = torch.einsum("b...i,b...j->...ij", z_centred, z_centred) / len(z)
    gamma = torch.einsum("b...i,b...j->...ij", scores_centred, scores_centred) / len(z)
    damped = rate / (1 + rate)
    u = rate * gamma + damped * _outer(score_mean)
    v = q.covariance_matrix + rate * c + damped * _outer(q.loc - z_mean)
    root = torch.linalg.cholesky(v)
    values, vectors = torch.linalg.eigh(root.mT @ u @ root)
    half = root @ vectors * (2 / (1 + (1 + 4 * values.clamp(min=0)).sqrt())).sqrt().unsqueeze(-2)
    sigma = half @ half.mT
    loc = (q.loc + rate * ((sigma @ score_mean.unsqueeze(-1)).squeeze(-1) + z_mean)) / (1 + rate)
    return MultivariateNormal(loc, scale_tril=torch.linalg.cholesky(sigma), validate_args=False)


def _mismatch(q: MultivariateNormal, z: Tensor, scores: Tensor) -> float:
    """The score-based divergence, estimated from the batch and summed over the data."""
    gap = scores.unsqueeze(-1) + torch.cholesky_solve((z - q.loc).unsqueeze(-1), q.scale_tril)
    return float((q.scale_tril.mT @ gap).square().sum() / len(z))


def _outer(vector: Tensor) -> Tensor:
    return vector.unsqueeze(-1) * vector.unsqueeze(-2)


def _in_float64(q: Any) -> MultivariateNormal:
    return MultivariateNormal(q.loc.detach().double(), scale_tril=q.scale_tril.detach().double(), validate_args=False)
