"""Stein's check of a model against reference draws from its posterior."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..programs.arguments import checked
from ..programs.log_joint import LogJoint
from ..programs.validation import as_args, check_count, check_data

__all__ = ["SteinCheck", "stein_check"]


@dataclass(frozen=True)
class SteinCheck:
    """z-scores, standard normal if the draws come from the model's posterior: first of each unconstrained coordinate, then of
    each principal direction of the score. Shape (2 dim,)."""

    score: Tensor
    """z-scores of the mean score, whose expectation is 0."""
    stein: Tensor
    """z-scores of the mean of u · score along each direction, whose expectation is −1."""

    @property
    def largest(self) -> float:
        """max |z| of both."""
        return float(torch.cat([self.score, self.stein]).abs().max())


@checked
def stein_check(
    model: Callable[..., Any], x: Tensor | tuple[Any, ...], draws: Mapping[str, Tensor], *, chains: int = 1
) -> SteinCheck:
    """Checks a model against draws from its posterior by Stein's identity in unconstrained space.

    For draws u from a density ∝ exp(log p(x, u)) with fast tails, E[∂ log p/∂u_j] = 0 and E[(u_j − c) ∂ log p/∂u_j] = −1 for
    any constant c; c is the draws' mean, which lowers the variance. A wrong prior or Jacobian breaks at least one of these
    identities. They hold along every direction, and principal directions are tested too: in a funnel the score of each
    coordinate has tails too heavy for any test, but the principal directions with the smallest score still reveal an error.

    Args:
        model: any Pyro model.
        x: its data.
        draws: for each latent site its draws, shape (K, *shape), chain after chain.
        chains: number of chains; the standard errors allow for autocorrelation within each (Monte Carlo standard errors of
            Vehtari et al. 2021, by ArviZ).

    Reference: Gorham & Mackey, "Measuring sample quality with Stein's method" (2015), section 2.
    """
    check_count(chains=chains)
    check_data(model, as_args(x))
    joint = LogJoint(model, x)
    u = joint.unconstrain(draws)
    spread = u.std(0)
    u, score = (u - u.mean(0)) / spread, joint.score(u) * spread
    # One half of the draws gives the directions and the other half tests them: on the same draws they would fit the noise.
    half = len(u) // 2
    directions = torch.linalg.eigh(score[:half].mT @ score[:half] / half).eigenvectors
    along = score[half:] @ directions
    across = (u[half:] @ directions) * along + 1
    found = SteinCheck(
        torch.cat([_z(score, chains), _z(along, max(1, chains // 2))]),
        torch.cat([_z(u * score + 1, chains), _z(across, max(1, chains // 2))]),
    )
    if not (found.score.isfinite().all() and found.stein.isfinite().all()):
        raise ValueError("stein_check: the model's score is not finite, or has no spread, at these draws: check x and draws.")
    return found


def _z(value: Tensor, chains: int) -> Tensor:
    """The mean of each column in units of its Monte Carlo standard error."""
    from arviz import mcse

    by_chain = value.double()[: len(value) // chains * chains].reshape(chains, -1, value.shape[-1])
    errors = torch.tensor([float(mcse(column.numpy())) for column in by_chain.unbind(-1)], dtype=torch.float64)
    return value.mean(0).double() / errors
