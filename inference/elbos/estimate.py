"""The ELBO of any guide, with its standard error, split in its two terms."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..programs.draws import Draws, draw_chunks
from ..programs.isolation import isolated
from ..programs.validation import as_args, check_count, check_data, check_pair

__all__ = ["Estimate", "Terms", "elbo"]


class Terms(NamedTuple):
    """ELBO = reconstruction − complexity, in nats, each with its Monte Carlo standard error. All of one shape."""

    elbo: Tensor
    elbo_se: Tensor
    reconstruction: Tensor
    """E_q[log p(x | h)]."""
    reconstruction_se: Tensor
    complexity: Tensor
    """KL(q(h | x) ‖ p(h))."""
    complexity_se: Tensor


@dataclass(frozen=True)
class Estimate:
    """An estimate of the ELBO, higher is better."""

    total: Terms
    """For all data together; shape ()."""
    per_datum: Terms | None
    """For each datum, shape (N,); None where latents are shared between data."""
    draws: int

    @property
    def value(self) -> float:
        """The total ELBO, in nats."""
        return float(self.total.elbo)

    @property
    def se(self) -> float:
        """Standard error of `value`."""
        return float(self.total.elbo_se)


def elbo(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    x: Tensor | tuple[Any, ...],
    *,
    draws: int = 100,
    seed: int = 0,
) -> Estimate:
    """Estimates ELBO = E_q[log p(x | h)] − KL(q(h | x) ‖ p(h)) from independent draws, one noise for all terms.

    A point mass (`guides.Delta`, Pyro's AutoDelta) has infinite KL, so its ELBO is −inf. Changes nothing global.

    Args:
        model, guide: as for `fit`; after a fit, its `model` and `guide`.
        x: the data, or a tuple of the model's arguments.
        draws: number K of draws, at least 2; the standard errors are sd / √K.
        seed: fixes the draws.

    Raises:
        TypeError, ValueError: for bad input, before any work starts.

    Reference: Jordan, Ghahramani, Jaakkola & Saul, "An introduction to variational methods for graphical models" (1999).
    """
    args = as_args(x)
    check_count(draws=draws, least=2)
    check_data(model, args)
    with isolated(seed):
        check_pair(model, guide, args, {})
        total, per_datum = _Terms(), _Terms()
        for draw in draw_chunks(model, guide, args, draws=draws):
            total.add(draw.total)
            if draw.per_datum:
                per_datum.add(draw)
    return Estimate(total.result(), per_datum.result() if per_datum.count else None, draws)


class _Terms:
    """Mean and sum of squared deviations of the three terms, merged chunk by chunk.

    Reference: Chan, Golub & LeVeque, "Algorithms for computing the sample variance" (1983), equation 2.1.
    """

    def __init__(self) -> None:
        self.count = 0
        self.mean = self.squares = torch.zeros(())

    def add(self, draw: Draws) -> None:
        reconstruction, complexity = draw.log_likelihood, draw.log_q - draw.log_prior
        terms = torch.stack([reconstruction - complexity, reconstruction, complexity]).double()
        count = terms.shape[1]
        mean = terms.mean(1)
        squares = (terms - mean.unsqueeze(1)).square().sum(1)
        if self.count:
            shift = torch.where(mean == self.mean, 0.0, mean - self.mean)
            squares = squares + self.squares + shift**2 * self.count * count / (self.count + count)
            mean = torch.where(mean == self.mean, mean, self.mean + shift * count / (self.count + count))
        self.count, self.mean, self.squares = self.count + count, mean, squares

    def result(self) -> Terms:
        se = (self.squares / (self.count - 1) / self.count).sqrt().where(~self.mean.isinf(), 0.0)
        return Terms(self.mean[0], se[0], self.mean[1], se[1], self.mean[2], se[2])
