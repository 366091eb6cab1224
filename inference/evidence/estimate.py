"""log p(x) as the logarithm of a mean of importance weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, log
from typing import Self

import torch
from torch import Tensor

from .finite import require_finite
from .psis import psis
from .text import evidence_html, evidence_text

__all__ = ["Evidence", "LogMean"]

MIN_DRAWS_FOR_KHAT = 100
"""With fewer weights, k̂ is NaN."""


@dataclass(frozen=True)
class Evidence:
    """An estimate of log p(x), in nats, float64: shape (N,) if each datum has its own latents, else ()."""

    value: Tensor
    se: Tensor
    """Standard error of each value by the delta method: sd(w) / (mean(w) √K) for weights w. If few weights dominate the sum
    (a small `ess`, a large `khat`), the standard error is unreliable and too small. NaN for one weight, which has none."""
    ess: Tensor
    """Effective number of weights: (Σ w)² / Σ w², between 1 and K."""
    draws: int
    """K."""
    bound: str
    """"lower" or "upper": the side of log p(x) on which the expectation of `value` lies."""
    khat: Tensor
    """Pareto k̂ of each datum's weights; NaN for fewer than 100 weights, too few to estimate a tail. Above 0.7 `value` is
    unreliable, and above ½ `se` is too small. A small k̂ does not prove either: it describes the weights that were drawn. A q
    narrower than the posterior leaves out the draws with large weights, and its k̂ is too small as well: for a Gaussian with
    0.6 of the posterior's sds in five dimensions, few intervals of two `se` hold log p(x), even where k̂ is below ½. Compare
    with the value of a wider q: `guides.Defensive`, or the wider draws of `inference.trust`."""

    @property
    def mean(self) -> float:
        """Mean over the data, nats per datum."""
        return float(self.value.mean())

    @property
    def mean_se(self) -> float:
        """Monte Carlo standard error of `mean`; the estimates of different data are independent."""
        return float(self.se.square().sum().sqrt() / max(1, self.se.numel()))

    def __repr__(self) -> str:
        return evidence_text(self)

    def _repr_html_(self) -> str:
        return evidence_html(self)

    def checked(self, owner: str) -> Self:
        """This estimate, if log p(x) is finite for every datum.

        Raises:
            ValueError: that names the first datum for which it is not.
        """
        require_finite(self.value, f"{owner}: the estimate of log p(x)")
        return self

    @classmethod
    def joined(cls, blocks: Sequence[Self]) -> Self:
        """The estimates of consecutive blocks of data as one. A single block may be of shape ()."""
        first = blocks[0]
        if len(blocks) == 1:
            return first
        tensors = (torch.cat([getattr(block, name) for block in blocks]) for name in ("value", "se", "ess", "khat"))
        value, se, ess, khat = tensors
        return cls(value, se, ess, first.draws, first.bound, khat)


class LogMean:
    """log of the mean of `draws` weights, added chunk by chunk.

    Weights are scaled by the largest so far, so sums neither overflow nor underflow. Only the tail to which k̂ is fitted, about
    3 √draws weights, is kept.
    """

    def __init__(self, draws: int) -> None:
        self.draws = draws
        self.seen = 0
        self.top = self.first = self.second = torch.zeros((), dtype=torch.float64)
        self.tail = torch.zeros(0)

    def add(self, log_weights: Tensor) -> None:
        """Adds a chunk of log weights, shape (k, *shape)."""
        log_weights = log_weights.detach().double()
        top = log_weights.amax(0)
        if self.seen:
            top = torch.maximum(top, self.top)
            shrink = (self.top - top).nan_to_num(nan=0.0).exp()
            self.first, self.second = self.first * shrink, self.second * shrink**2
        weights = (log_weights - top.masked_fill(top.isinf(), 0.0)).exp()
        self.first = self.first + weights.sum(0)
        self.second = self.second + weights.square().sum(0)
        self.top = top
        tail = torch.cat([self.tail, log_weights]) if self.seen else log_weights
        # PSIS measures the tail from the largest weight below it, so one more weight is kept.
        self.tail = tail.topk(min(len(tail), ceil(min(self.draws / 5, 3 * self.draws**0.5)) + 1), 0).values
        self.seen += len(log_weights)

    def result(self, *, upper: bool = False) -> Evidence:
        """The estimate of log p(x); `upper` if the mean of the weights estimates 1/p(x) instead of p(x)."""
        value = self.top + self.first.log() - log(self.seen)
        ess = self.first.square() / self.second
        if self.seen > 1:
            relative = (self.seen / ess - 1.0).clamp(min=0.0) / (self.seen - 1)
        else:
            relative = torch.full_like(ess, torch.nan)
        bound = "upper" if upper else "lower"
        return Evidence(-value if upper else value, relative.sqrt(), ess, self.seen, bound, self._khat())

    def _khat(self) -> Tensor:
        """k̂ from the kept tail and the number of weights below it."""
        shape = self.tail.shape[1:]
        if self.seen < MIN_DRAWS_FOR_KHAT:
            return torch.full(shape, torch.nan, dtype=torch.float64)
        columns = self.tail.flatten(1) if shape else self.tail.unsqueeze(1)
        khat = [_tail_index(column, self.seen) for column in columns.unbind(1)]
        return torch.stack(khat).reshape(shape)


def _tail_index(tail: Tensor, draws: int) -> Tensor:
    if not bool(tail.isfinite().all()):
        return torch.tensor(torch.inf, dtype=torch.float64)
    rest = (tail[-1] - 1.0 * bool(tail[0] > tail[-1])).expand(draws - len(tail))
    return psis(torch.cat([tail, rest]))[1]
