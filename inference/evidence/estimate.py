"""log p(x) as the logarithm of a mean of weights."""

from __future__ import annotations

from dataclasses import dataclass
from math import log

import torch
from torch import Tensor

__all__ = ["Evidence", "LogMean"]


@dataclass(frozen=True)
class Evidence:
    """An estimate of log p(x), in nats, float64: shape (N,) where each datum has latents of its own, else ()."""

    value: Tensor
    se: Tensor
    """Standard error of each value, by the delta method: sd(w) / (mean(w) √K) for weights w. Where few weights carry the sum
    (a small `ess`), it is itself unreliable, and too small."""
    ess: Tensor
    """(Σ w)² / Σ w²: how many of the K weights carry the sum."""
    samples: int
    """K."""
    bound: str
    """"lower" or "upper": on which side of log p(x) the expectation of `value` lies."""

    @property
    def mean(self) -> float:
        """Mean over the data, nats per datum."""
        return float(self.value.mean())

    @property
    def mean_se(self) -> float:
        """Monte Carlo standard error of `mean`; the estimates of different data are independent."""
        return float(self.se.square().sum().sqrt() / max(1, self.se.numel()))


class LogMean:
    """log of the mean of weights that come in chunks, scaled by the largest so far, so that nothing over- or underflows."""

    def __init__(self) -> None:
        self.count = 0
        self.top = self.first = self.second = torch.zeros((), dtype=torch.float64)

    def add(self, log_weights: Tensor) -> None:
        """Takes a chunk of log weights, shape (k, *shape)."""
        log_weights = log_weights.detach().double()
        top = log_weights.amax(0)
        if self.count:
            top = torch.maximum(top, self.top)
            shrink = (self.top - top).nan_to_num(nan=0.0).exp()
            self.first, self.second = self.first * shrink, self.second * shrink**2
        weights = (log_weights - top.masked_fill(top.isinf(), 0.0)).exp()
        self.first = self.first + weights.sum(0)
        self.second = self.second + weights.square().sum(0)
        self.top = top
        self.count += len(log_weights)

    def result(self, *, upper: bool = False) -> Evidence:
        """The estimate of log p(x); `upper` if the mean of the weights is 1/p(x) and not p(x)."""
        value = self.top + self.first.log() - log(self.count)
        ess = self.first.square() / self.second
        relative = (self.count / ess - 1.0).clamp(min=0.0) / max(1, self.count - 1)
        return Evidence(-value if upper else value, relative.sqrt(), ess, self.count, "upper" if upper else "lower")
