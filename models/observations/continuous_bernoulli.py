"""Grey values in [0, 1]."""

from __future__ import annotations

from math import factorial, perm
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor
from torch.distributions import register_kl
from torch.distributions.utils import broadcast_all

from .base import Observation

__all__ = ["ContinuousBernoulli"]

MAX_OFFSET = 20.0
"""Largest offset in absolute value: an entry that is constant in the data would have an infinite one."""
BERNOULLI = (1 / 6, -1 / 30, 1 / 42, -1 / 30, 5 / 66, -691 / 2730, 7 / 6, -3617 / 510, 43867 / 798, -174611 / 330)
"""The Bernoulli numbers B_2 … B_20."""
SERIES = [b / (2 * n * factorial(2 * n)) for n, b in enumerate(BERNOULLI, start=1)]
"""log (sinh(l/2) / (l/2)) = Σ_n SERIES[n − 1] l^(2n): for |l| < 1 exact to float64's rounding, and free of cancellation."""
MAX_LINEAR = 1e-7
"""Up to this |l|, where quotients become 0/0, the distribution function is linear in l to float64's rounding."""


class ContinuousBernoulli(Observation):
    """x ~ ContinuousBernoulli(sigmoid(output)), x in [0, 1]: a Bernoulli of grey values, normalised to be a density.

    Its density is l e^(l x) / (e^l − 1) with l the output. All is computed from l, so that no digits are lost where
    sigmoid(l) rounds to 0 or 1.

    Reference: Loaiza-Ganem & Cunningham, "The continuous Bernoulli: fixing a pervasive error in variational autoencoders"
    (2019).
    """

    support = constraints.unit_interval

    def forward(self, output: Tensor) -> dist.ContinuousBernoulli:
        return _FromLogits(logits=output)

    def offset(self, mean: Tensor) -> Tensor:
        """The output with this mean, by bisection: the mean has no closed-form inverse."""
        low, high = torch.full_like(mean, -60.0), torch.full_like(mean, 60.0)
        for _ in range(60):
            middle = (low + high) / 2
            below = self(middle).mean < mean
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        return ((low + high) / 2).clamp(-MAX_OFFSET, MAX_OFFSET)


class _FromLogits(dist.ContinuousBernoulli):
    """torch's distribution, which goes through clamped probabilities, computed from the logits l instead.

    With a = |l|, every quantity is one of l = −a, mirrored if l > 0; there 1 − e^−a is free of cancellation.
    """

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        logits, value = broadcast_all(self.logits, value)
        return torch.where(logits > 0, logits * (value - 1), logits * value) - self._log_mass()

    @property
    def mean(self) -> Tensor:
        mirrored = self._mirrored_mean()
        return torch.where(self.logits > 0, 1 - mirrored, mirrored)

    @property
    def variance(self) -> Tensor:
        a, small = self._large(1.0)
        return torch.where(small, self._series(2), a**-2 - (-a).exp() / (-a).expm1() ** 2)

    def cdf(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        a, small = self._large(MAX_LINEAR)
        place = torch.where(self.logits > 0, 1 - value, value)
        share = (-a * place).expm1() / (-a).expm1()
        share = torch.where(small, place + self._absolute() * place * (1 - place) / 2, share)
        return torch.where(self.logits > 0, 1 - share, share)

    def icdf(self, value: Tensor) -> Tensor:
        a, small = self._large(MAX_LINEAR)
        share = torch.where(self.logits > 0, 1 - value, value)
        place = (share * (-a).expm1()).log1p() / -a
        place = torch.where(small, share - self._absolute() * share * (1 - share) / 2, place)
        return torch.where(self.logits > 0, 1 - place, place).clamp(0.0, 1.0)

    def entropy(self) -> Tensor:
        return _cross_entropy(self, self)

    def _mirrored_mean(self) -> Tensor:
        """The mean for l = −a, from 0 to ½."""
        a, small = self._large(1.0)
        return torch.where(small, 0.5 - self._series(1), 1 / a + (-a).exp() / (-a).expm1())

    def _cont_bern_log_norm(self) -> Tensor:
        return (-self._absolute()).exp().log1p() - self._log_mass()

    def _log_mass(self) -> Tensor:
        """log ∫ e^(−a x) dx over [0, 1] = log (1 − e^−a) / a."""
        a, small = self._large(1.0)
        return torch.where(small, self._series(0) - self._absolute() / 2, (-(-a).expm1()).log() - a.log())

    def _series(self, order: int) -> Tensor:
        """The derivative of this order of log (sinh(l/2) / (l/2)), at |l|."""
        a = self._absolute()
        # Where the series is not used its powers would overflow, and their gradients be NaN.
        a = torch.where(a < 1.0, a, torch.zeros_like(a))
        terms = [c * perm(2 * n, order) * a ** (2 * n - order) for n, c in enumerate(SERIES, start=1)]
        return torch.stack(terms).sum(0)

    def _large(self, limit: float) -> tuple[Tensor, Tensor]:
        """|l|, with 1 in place of smaller values than `limit`, and where these are: no branch of `where` is then infinite."""
        a = self._absolute()
        small = a < limit
        return torch.where(small, torch.ones_like(a), a), small

    def _absolute(self) -> Tensor:
        """|l|, whose derivative at zero is −1: the gradient of `abs` there, 0, would stop a fit that starts from zero."""
        return torch.where(self.logits > 0, self.logits, -self.logits)


def _cross_entropy(p: _FromLogits, q: _FromLogits) -> Tensor:
    """−E_p[log q]."""
    mean, same_side = p._mirrored_mean(), (p.logits > 0) == (q.logits > 0)
    return q._absolute() * torch.where(same_side, mean, 1 - mean) + q._log_mass()


@register_kl(_FromLogits, _FromLogits)  # type: ignore[untyped-decorator]
def _kl(p: Any, q: Any) -> Tensor:
    return _cross_entropy(p, q) - _cross_entropy(p, p)
