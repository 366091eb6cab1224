"""The ELBO of any guide with its standard error, split into its two terms."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..programs.arguments import checked
from ..programs.draws import Draws, draw_chunks
from ..programs.isolation import isolated
from ..programs.validation import as_args, check_count, check_data, check_pair
from .text import estimate_html, estimate_text

__all__ = ["Estimate", "Terms", "elbo"]


class Terms(NamedTuple):
    """ELBO = reconstruction − complexity, in nats, each with its Monte Carlo standard error. All have the same shape."""

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
    """For each datum, shape (N,); None if latents are shared between data."""
    draws: int

    @property
    def value(self) -> float:
        """The total ELBO, in nats."""
        return float(self.total.elbo)

    @property
    def se(self) -> float:
        """Standard error of `value`."""
        return float(self.total.elbo_se)

    def __repr__(self) -> str:
        return estimate_text(self)

    def _repr_html_(self) -> str:
        return estimate_html(self)


@checked
def elbo(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    x: Tensor | tuple[Any, ...],
    *,
    draws: int = 100,
    seed: int = 0,
) -> Estimate:
    """Estimates ELBO = E_q[log p(x | h)] − KL(q(h | x) ‖ p(h)) from independent draws, the same for both terms.

    A point mass (`guides.Delta`, Pyro's AutoDelta) has infinite KL, so its ELBO is −inf. Global state stays unchanged.

    Args:
        model, guide: as for `fit`; after a fit, its `model` and `guide`.
        x: the data, or a tuple of the model's arguments.
        draws: number K of draws, at least 2; the standard errors are sd / √K.
        seed: fixes the draws.

    Raises:
        TypeError, ValueError: for bad input, before any work starts; a ValueError also if a term is not finite, but for the
            complexity of a point mass.

    Reference: Jordan, Ghahramani, Jaakkola & Saul, "An introduction to variational methods for graphical models" (1999).
    """
    args = as_args(x)
    check_count(draws=draws, least=2)
    check_data(model, args)
    with isolated(seed):
        check_pair(model, guide, args, {}, enumerated=True)
        total, per_datum = _RunningTerms(), _RunningTerms()
        for chunk in draw_chunks(model, guide, args, draws=draws):
            total.add(chunk.total)
            if chunk.per_datum:
                per_datum.add(chunk)
    _require_finite(total.result(), draws)
    return Estimate(total.result(), per_datum.result() if per_datum.draws else None, draws)


def _require_finite(terms: Terms, draws: int) -> None:
    """Raises a ValueError for a term that no finite density has. The complexity of a point mass is +inf, and stays."""
    named = {"E_q[log p(x | h)]": terms.reconstruction, "KL(q(h | x) ‖ p(h))": terms.complexity}
    for name, value in named.items():
        if not (value.isfinite() or (value is terms.complexity and value == torch.inf)):
            raise ValueError(
                f"elbo: {name} is {value.item()} over {draws} draws: a density is zero or infinite at draws of q, or too far "
                "from q for the precision of its numbers. Scale x, use float64, or give q another start."
            )


class _RunningTerms:
    """Mean and sum of squared deviations of the three terms, merged chunk by chunk.

    Reference: Chan, Golub & LeVeque, "Algorithms for computing the sample variance" (1983), equation 2.1.
    """

    def __init__(self) -> None:
        self.draws = 0
        self.mean = self.squares = torch.zeros(())

    def add(self, chunk: Draws) -> None:
        reconstruction, complexity = chunk.log_likelihood, chunk.log_q - chunk.log_prior
        terms = torch.stack([reconstruction - complexity, reconstruction, complexity]).double()
        draws = terms.shape[1]
        mean = terms.mean(1)
        squares = (terms - mean.unsqueeze(1)).square().sum(1)
        if self.draws:
            # Infinite terms of a point mass must not become inf − inf.
            shift = torch.where(mean == self.mean, 0.0, mean - self.mean)
            squares = squares + self.squares + shift**2 * self.draws * draws / (self.draws + draws)
            mean = torch.where(mean == self.mean, mean, self.mean + shift * draws / (self.draws + draws))
        self.draws, self.mean, self.squares = self.draws + draws, mean, squares

    def result(self) -> Terms:
        se = (self.squares / (self.draws - 1) / self.draws).sqrt().where(~self.mean.isinf(), 0.0)
        return Terms(self.mean[0], se[0], self.mean[1], se[1], self.mean[2], se[2])
