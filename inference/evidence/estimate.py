"""log p(x) as the logarithm of a mean of weights."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, log

import torch
from torch import Tensor

from .psis import psis

__all__ = ["Evidence", "LogMean"]

LEAST = 100
"""Weights without which there is no k̂."""


@dataclass(frozen=True)
class Evidence:
    """An estimate of log p(x), in nats, float64: shape (N,) where each datum has latents of its own, else ()."""

    value: Tensor
    se: Tensor
    """Standard error of each value, by the delta method: sd(w) / (mean(w) √K) for weights w. Where few weights carry the sum
    (a small `ess`, a large `khat`), it is itself unreliable, and too small."""
    ess: Tensor
    """(Σ w)² / Σ w²: how many of the K weights carry the sum."""
    draws: int
    """K."""
    bound: str
    """"lower" or "upper": on which side of log p(x) the expectation of `value` lies."""
    khat: Tensor
    """Pareto k̂ of each datum's weights: `se` is to be believed below ½, where their variance is finite, `value` up to 0.7.
    NaN for fewer than 100 weights, of which no tail can be known."""

    @property
    def mean(self) -> float:
        """Mean over the data, nats per datum."""
        return float(self.value.mean())

    @property
    def mean_se(self) -> float:
        """Monte Carlo standard error of `mean`; the estimates of different data are independent."""
        return float(self.se.square().sum().sqrt() / max(1, self.se.numel()))


class LogMean:
    """log of the mean of `draws` weights that come in chunks, scaled by the largest so far: nothing over- or underflows.

    Of the weights themselves only the tail that k̂ is fitted to is kept, some 3 √draws of them.
    """

    def __init__(self, draws: int) -> None:
        self.draws = draws
        self.count = 0
        self.top = self.first = self.second = torch.zeros((), dtype=torch.float64)
        self.tail = torch.zeros(0)

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
        tail = torch.cat([self.tail, log_weights]) if self.count else log_weights
        # PSIS fits its tail above the largest weight that is not in it.
        self.tail = tail.topk(min(len(tail), ceil(min(self.draws / 5, 3 * self.draws**0.5)) + 1), 0).values
        self.count += len(log_weights)

    def result(self, *, upper: bool = False) -> Evidence:
        """The estimate of log p(x); `upper` if the mean of the weights is 1/p(x) and not p(x)."""
        value = self.top + self.first.log() - log(self.count)
        ess = self.first.square() / self.second
        relative = (self.count / ess - 1.0).clamp(min=0.0) / max(1, self.count - 1)
        bound = "upper" if upper else "lower"
        return Evidence(-value if upper else value, relative.sqrt(), ess, self.count, bound, self._khat())

    def _khat(self) -> Tensor:
        """k̂ from the tail, the weights below it standing in only by their number."""
        shape = self.tail.shape[1:]
        if self.count < LEAST:
            return torch.full(shape, torch.nan, dtype=torch.float64)
        columns = self.tail.flatten(1) if shape else self.tail.unsqueeze(1)
        khat = [_tail_index(column, self.count) for column in columns.unbind(1)]
        return torch.stack(khat).reshape(shape)


def _tail_index(tail: Tensor, count: int) -> Tensor:
    if not bool(tail.isfinite().all()):
        return torch.tensor(torch.inf, dtype=torch.float64)
    rest = (tail[-1] - 1.0 * bool(tail[0] > tail[-1])).expand(count - len(tail))
    return psis(torch.cat([tail, rest]))[1]
