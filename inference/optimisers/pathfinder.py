"""Pathfinder: the best of the Gaussian approximations along quasi-Newton paths to the mode."""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite, log, pi
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from scipy.optimize import OptimizeResult, minimize
from torch import Tensor
from torch.linalg import LinAlgError  # type: ignore[attr-defined]

from guides import FullRank, Global, MeanField

from ..programs.arguments import check_fields
from ..programs.bound import unwrap
from ..programs.validation import check_count
from .base import Solution, Solver, SolverTask, check_only_q, guide_name
from .gaussian_state import block_mask, scale_tril
from .scores import Scores

__all__ = ["Pathfinder"]

MAX_START = 2.0
"""Further paths start uniformly within ± this in each unconstrained coordinate, as Stan does by default."""


@dataclass(frozen=True)
class Pathfinder(Solver):
    r"""Follows L-BFGS from several points towards modes of log p(x, h) and keeps the iterate whose Gaussian has the best ELBO.

    At an iterate z with g = ∇ log p(x, z), L-BFGS's estimate Σ of the inverse Hessian of −log p, a diagonal plus a low-rank
    matrix, gives the Gaussian N(z + Σ g, Σ). It is good where the path crosses the bulk of the posterior, often before the
    mode. A family that cannot represent Σ gets the corresponding blocks of Σ⁻¹, its closest Gaussian in KL(q ‖ N(z + Σ g, Σ)).

    A path needs some tens of gradients. Its result is no optimum of the ELBO: use the guide as it is, or continue the fit
    from there with any optimiser. The first path starts at the mean of q, the others at random.

    For ``Global`` with MeanField, FullRank or Blocks, of a model with nothing to learn.

    Args:
        paths: number of paths; the iterations of all paths count as steps of the fit.
        draws: number of draws that estimate the ELBO of each iterate.
        memory: number of latest steps and gradient changes that determine Σ.

    Reference: Zhang, Carpenter, Gelman & Vehtari, "Pathfinder: parallel quasi-Newton variational inference" (2022),
    algorithms 1–4; Byrd, Nocedal & Schnabel, "Representations of quasi-Newton matrices" (1994), for Σ.
    """

    exact: ClassVar[bool] = False

    paths: int = 4
    draws: int = 25
    memory: int = 6

    def __post_init__(self) -> None:
        check_fields(self)
        check_count(paths=self.paths, memory=self.memory)
        check_count(draws=self.draws, least=2)

    def check(self, task: SolverTask) -> None:
        guide = unwrap(task.guide)
        applies = isinstance(guide, Global) and isinstance(guide.family, (MeanField, FullRank))
        if not applies:
            raise ValueError(
                "Pathfinder sets one Gaussian over all latents, so it needs Global with MeanField, FullRank or Blocks, but "
                f"the guide is {guide_name(guide)}: use FixedDraws for another Gaussian, or torch's Adam."
            )
        check_only_q(self, task)

    def solve(self, task: SolverTask, *, steps: int) -> Solution:
        self.check(task)
        guide: Any = unwrap(task.guide)
        mean = guide.q(task.args[0]).mean.detach().double()
        mask = block_mask(guide.family, mean)
        starts = [mean, *MAX_START * (2 * torch.rand(self.paths - 1, len(mean), dtype=mean.dtype) - 1)]
        one, many = Scores(task, 1), Scores(task, self.draws)
        losses: list[float] = []
        best: tuple[float, Tensor] | None = None
        for start in starts:
            for gaussian in _path(one, start, steps=steps - len(losses), memory=self.memory):
                nelbo, lam = self._nelbo_and_lam(guide.family, mask, gaussian, many)
                losses.append(nelbo)
                if isfinite(nelbo) and (best is None or nelbo < best[0]):
                    best = nelbo, lam
            if len(losses) >= steps:
                break
        if best is None:
            return Solution.diverged(losses[:-1])
        with torch.no_grad():
            task.parameters[0].copy_(best[1])
        if not isfinite(losses[-1]):
            losses[-1] = best[0]
        return Solution(losses, f"ended after {len(losses)} iterations; its q is no optimum of the ELBO", converged=False)

    @staticmethod
    def _nelbo_and_lam(family: Any, mask: Tensor, gaussian: _Gaussian, scores: Scores) -> tuple[float, Tensor]:
        """−ELBO from draws, and λ. −ELBO is infinite if the covariance is not positive definite or log p not finite."""
        try:
            root = scale_tril(torch.linalg.inv(gaussian.covariance) * mask)
        except LinAlgError:
            return float("inf"), gaussian.loc
        noise = torch.randn(len(scores), len(root), dtype=root.dtype)
        log_p, _ = scores(gaussian.loc + noise @ root.mT)
        log_q = -0.5 * noise.square().sum(-1) - root.diagonal().log().sum() - 0.5 * len(root) * log(2 * pi)
        nelbo = float((log_q - log_p).mean())
        return nelbo if isfinite(nelbo) else float("inf"), family.inverse(gaussian.loc, root)


class _Gaussian(NamedTuple):
    loc: Tensor
    covariance: Tensor


def _path(scores: Scores, start: Tensor, *, steps: int, memory: int) -> list[_Gaussian]:
    """The Gaussian at each iterate of L-BFGS except the start. Empty if log p is not finite at the start."""
    known: dict[bytes, tuple[float, Any]] = {}

    def loss(point: Any) -> tuple[float, Any]:
        log_p, score = scores(torch.from_numpy(np.array(point)).unsqueeze(0))
        value, gradient = -float(log_p), -score[0].numpy()
        known[point.tobytes()] = value, gradient
        return value, gradient

    points = [start.numpy()]
    if not all(np.isfinite(part).all() for part in loss(points[0])):
        return []

    def visit(intermediate_result: OptimizeResult) -> None:
        points.append(np.array(intermediate_result.x))

    minimize(
        loss,
        points[0],
        jac=True,
        method="L-BFGS-B",
        callback=visit,
        options={"maxcor": memory, "maxiter": steps, "ftol": 1e-12},
    )
    gradients = [(known.get(point.tobytes()) or loss(point))[1] for point in points]
    return _gaussians(torch.from_numpy(np.stack(points)), torch.from_numpy(np.stack(gradients)), memory)


def _gaussians(points: Tensor, gradients: Tensor, memory: int) -> list[_Gaussian]:
    """N(z − Σ ∇(−log p), Σ) at each point except the first, with Σ from the moves up to that point."""
    diagonal = torch.ones_like(points[0])
    moves: list[tuple[Tensor, Tensor]] = []
    gaussians = []
    for i in range(1, len(points)):
        move, change = points[i] - points[i - 1], gradients[i] - gradients[i - 1]
        # A move along which the curvature is not positive would make Σ indefinite: the paper skips it too.
        if move @ change > 1e-12 * change.square().sum():
            diagonal = _diagonal(diagonal, move, change)
            moves = [*moves, (move, change)][-memory:]
        covariance = _inverse_hessian(diagonal, moves)
        gaussians.append(_Gaussian(points[i] - covariance @ gradients[i], covariance))
    return gaussians


def _diagonal(old: Tensor, move: Tensor, change: Tensor) -> Tensor:
    """The diagonal part of the inverse Hessian after one more move and change of gradient: Gilbert and Lemaréchal's update."""
    a, b, c = change @ (old * change), change @ move, move @ (move / old)
    return 1 / (a / (b * old) + change.square() / b - a * move.square() / (b * c * old.square()))


def _inverse_hessian(diagonal: Tensor, moves: list[tuple[Tensor, Tensor]]) -> Tensor:
    """L-BFGS's estimate of the inverse Hessian, shape (dim, dim), in the compact form of Byrd, Nocedal & Schnabel.

    With the moves S, changes of gradient Y, the diagonal D, R the upper triangle of SᵀY, and E its diagonal:
    D + S R⁻ᵀ (E + Yᵀ D Y) R⁻¹ Sᵀ − S R⁻ᵀ Yᵀ D − D Y R⁻¹ Sᵀ.
    """
    if not moves:
        return diagonal.diag()
    move, change = (torch.stack(part, -1) for part in zip(*moves, strict=True))
    products = move.mT @ change
    upper = products.triu()
    inverse = torch.linalg.solve_triangular(upper, torch.eye(len(upper), dtype=upper.dtype), upper=True)
    scaled = diagonal.unsqueeze(-1) * change
    corner = inverse.mT @ (products.diagonal().diag() + change.mT @ scaled) @ inverse
    cross = scaled @ inverse @ move.mT
    return diagonal.diag() + move @ corner @ move.mT - cross - cross.mT
