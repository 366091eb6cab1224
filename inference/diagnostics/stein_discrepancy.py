"""The kernel Stein discrepancy: a distance from draws to a density known up to its normaliser."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..programs.arguments import checked
from ..programs.isolation import isolated
from ..programs.log_joint import LogJoint
from ..programs.validation import as_args, check_count, check_data

__all__ = ["SteinDiscrepancy", "kernel_stein_discrepancy"]

MIN_DRAWS = 10


class SteinDiscrepancy(NamedTuple):
    """The squared discrepancy, zero if the draws come from the posterior, and its test."""

    squared: float
    """Unbiased estimate, so it can be negative."""
    p_value: float
    """p-value of the hypothesis that the draws are independent draws from the posterior; by the multiplier bootstrap."""


@checked
def kernel_stein_discrepancy(
    model: Callable[..., Any],
    x: Tensor | tuple[Any, ...],
    h: Mapping[str, Tensor],
    *,
    bootstrap: int = 500,
    seed: int = 0,
) -> SteinDiscrepancy:
    """Compares independent draws with the model's posterior in unconstrained space; the normaliser is not needed.

    The kernel is the inverse multiquadric (1 + |u − v|²)^−½ of coordinates in units of the draws' spread; it is sensitive to
    tails. Like every method that evaluates the density only at the draws, it cannot detect a missing mode. Costs O(K²).

    Args:
        model, x: the posterior.
        h: for each latent its draws, shape (K, *shape); K of a few hundred, at least 10.
        bootstrap: resamples for the p-value.
        seed: fixes the resamples.

    Raises:
        ValueError: if there are fewer than 10 draws.

    References: Liu, Lee & Jordan, "A kernelized Stein discrepancy for goodness-of-fit tests" (2016), equation 14; Gorham &
    Mackey, "Measuring sample quality with kernels" (2017).
    """
    check_count(bootstrap=bootstrap)
    check_data(model, as_args(x))
    joint = LogJoint(model, x)
    u = joint.unconstrain(h)
    draws = len(u)
    if draws < MIN_DRAWS:
        raise ValueError(f"kernel_stein_discrepancy needs at least {MIN_DRAWS} draws, but h holds {draws}.")
    spread = u.std(0)
    score = (joint.score(u) * spread).double()
    u = (u / spread).double()
    difference = u.unsqueeze(1) - u.unsqueeze(0)
    base = 1 + difference.square().sum(-1)
    along = difference * (score.unsqueeze(1) - score.unsqueeze(0))
    # With k = base^−½: ∇_u k = −base^−3/2 (u − v), and the trace of ∇_u ∇_v k is d base^−3/2 − 3 |u − v|² base^−5/2.
    kernel = (
        score @ score.mT * base**-0.5 + along.sum(-1) * base**-1.5 + u.shape[-1] * base**-1.5 - 3 * (base - 1) * base**-2.5
    )
    if not kernel.isfinite().all():
        raise ValueError("kernel_stein_discrepancy: the model's score is not finite, or h has no spread: check x and h.")
    kernel.fill_diagonal_(0.0)
    value = float(kernel.sum() / (draws * (draws - 1)))
    with isolated(seed):
        counts = torch.distributions.Multinomial(draws, torch.ones(draws)).sample((bootstrap,)).double()
    weights = (counts - 1) / draws
    null = ((weights @ kernel) * weights).sum(-1)
    return SteinDiscrepancy(value, float(((null >= value).sum() + 1) / (bootstrap + 1)))
