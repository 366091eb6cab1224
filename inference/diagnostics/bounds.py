"""Bounds on the errors of q's means and standard deviations, from the variance of the importance weights."""

from __future__ import annotations

from dataclasses import dataclass
from math import log

import torch
from torch import Tensor

from ..evidence.psis import MAX_KHAT_OF_FINITE_VARIANCE
from ..programs.arguments import checked
from .importance import Importance

__all__ = ["Bounds", "error_bounds"]


@dataclass(frozen=True)
class Bounds:
    """Bounds in the units of each scalar, shape (D,). They hold up to the Monte Carlo error of the divergence."""

    divergence: float
    """D_2 = log E_q[w²], w = p(h | x) / q(h | x): the Rényi divergence of order 2, in nats. Infinite if k̂ ≥ ½."""
    mean: Tensor
    """|E_p − E_q| ≤ sd_q √(exp D_2 − 1)."""
    sd: Tensor
    """|sd_p − sd_q| ≤ W_2 ≤ √2 (E_q|h − m|⁴ (exp D_2 − 1))^¼."""


@checked
def error_bounds(weighted: Importance) -> Bounds:
    """Bounds on the error of each mean and standard deviation, from the draws of `importance`.

    For a scalar quantity f, E_p[f] − E_q[f] = E_q[(w − 1)(f − m)] for any m, and Cauchy–Schwarz bounds the error of the mean.
    The Wasserstein distance obeys W_p^p ≤ 2^{p−1} ∫ |h − m|^p |p − q| dh, and |sd_p − sd_q| ≤ W_2. Both bounds are tight only
    for a good q. If the variance of the weights is infinite (k̂ ≥ ½), the bounds are infinite.

    References: Huggins, Kasprzak, Campbell & Broderick, "Validated variational inference via practical posterior error
    bounds" (2020); Villani, "Optimal Transport" (2009), theorem 6.15.
    """
    log_weights = weighted.log_weights
    log_draws = log(len(log_weights))
    log_mean = log_weights.logsumexp(0) - log_draws
    divergence = float((2 * (log_weights - log_mean)).logsumexp(0) - log_draws)
    divergence = max(divergence, 0.0) if weighted.khat < MAX_KHAT_OF_FINITE_VARIANCE else torch.inf
    spread = torch.tensor(divergence, dtype=torch.float64).expm1()
    deviation = weighted.scalars.draws - weighted.scalars.draws.mean(0)
    mean = (deviation.square().mean(0) * spread).sqrt()
    sd = 2**0.5 * (deviation.pow(4).mean(0) * spread).pow(0.25)
    return Bounds(divergence, mean, sd)
