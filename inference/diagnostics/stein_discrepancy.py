"""The kernel Stein discrepancy: how far draws are from a density that is known up to its normaliser."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..programs.isolation import isolated
from ..programs.log_joint import LogJoint

__all__ = ["SteinDiscrepancy", "kernel_stein_discrepancy"]


class SteinDiscrepancy(NamedTuple):
    """An unbiased estimate of the squared discrepancy, zero if the draws are the posterior's, and a test of that."""

    squared: float
    p_value: float
    """Of the hypothesis that the draws are independent draws from the posterior; by the multiplier bootstrap."""


def kernel_stein_discrepancy(
    model: Callable[..., Any],
    x: Tensor | tuple[Any, ...],
    h: Mapping[str, Tensor],
    *,
    bootstrap: int = 500,
    seed: int = 0,
) -> SteinDiscrepancy:
    """Measures independent draws against the model's posterior in unconstrained space, without its normaliser.

    The kernel is the inverse multiquadric (1 + |u − v|²)^−½ of coordinates in units of the draws' spread, which sees tails.
    Blind to a missing mode, as is everything that knows the density only where the draws are. Costs O(K²).

    Args:
        model, x: the posterior.
        h: for each latent its draws, shape (K, *shape); a few hundred.
        bootstrap: resamples for the p-value.

    References: Liu, Lee & Jordan, "A kernelized Stein discrepancy for goodness-of-fit tests" (2016), equation 14; Gorham &
    Mackey, "Measuring sample quality with kernels" (2017).
    """
    joint = LogJoint(model, x)
    u = joint.unconstrain(h)
    if len(u) < 10:
        raise ValueError(f"the discrepancy needs at least 10 draws, but there are {len(u)}.")
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
    kernel.fill_diagonal_(0.0)
    count = len(u)
    value = float(kernel.sum() / (count * (count - 1)))
    with isolated(seed):
        counts = torch.distributions.Multinomial(count, torch.ones(count)).sample((bootstrap,)).double()
    weights = (counts - 1) / count
    null = ((weights @ kernel) * weights).sum(-1)
    return SteinDiscrepancy(value, float(((null >= value).sum() + 1) / (bootstrap + 1)))
