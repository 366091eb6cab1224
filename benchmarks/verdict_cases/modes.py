"""Mixtures of Gaussians: a q that misses modes, far or narrow ones too, and one that misses none."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from scipy.optimize import brentq
from scipy.stats import norm
from torch import Tensor

from .base import TAIL, Case, Density, Truth, X, finished, gaussian_fit, line_truth, plain

__all__ = ["mode_cases"]


def mixture(weights: list[float], means: Tensor, sds: Tensor) -> dist.MixtureSameFamily:
    """A mixture of diagonal Gaussians; means and sds of shape (modes, d)."""
    component = dist.Normal(means, sds).to_event(1)
    return dist.MixtureSameFamily(dist.Categorical(torch.tensor(weights).double()), component)


def mixture_truth(weights: list[float], means: Tensor, sds: Tensor) -> Truth:
    """Closed-form moments, and quantiles by root finding."""
    share = torch.tensor(weights).double().unsqueeze(-1)
    mean = (share * means).sum(0)
    sd = (share * (sds**2 + (means - mean) ** 2)).sum(0).sqrt()
    ends = [[_quantile(weights, m, s, p) for m, s in zip(means.T, sds.T, strict=True)] for p in (TAIL, 1 - TAIL)]
    return Truth(mean, sd, *(torch.tensor(end).double() for end in ends), 0.0)


def _quantile(weights: list[float], means: Tensor, sds: Tensor, p: float) -> float:
    w, m, s = np.asarray(weights), means.numpy(), sds.numpy()
    return float(brentq(lambda at: float((w * norm.cdf(at, m, s)).sum()) - p, -1e3, 1e3))


def _mixture(  # noqa: PLR0917 - a line of a table
    name: str,
    weights: list[float],
    means: Any,
    sds: Any,
    q_mean: Any,
    q_sd: Any,
    *,
    program: Any = Density,
    draws: int = 100_000,
) -> Case:
    means = torch.as_tensor(means, dtype=torch.float64)
    sds = torch.as_tensor(sds, dtype=torch.float64).expand(means.shape)
    model = program(mixture(weights, means, sds).log_prob, means.shape[1])
    q_sd = torch.as_tensor(q_sd, dtype=torch.float64).expand(means.shape[1])
    return Case(name, lambda: gaussian_fit(model, q_mean, q_sd), mixture_truth(weights, means, sds), draws)


def _along(dim: int, at: float, *, diagonal: bool = False) -> Tensor:
    """Two centres: the origin, and a point at distance `at`, along the first coordinate or along the diagonal."""
    other = torch.full((dim,), at / dim**0.5) if diagonal else torch.tensor([at, *[0.0] * (dim - 1)])
    return torch.stack([torch.zeros(dim), other]).double()


def _first(name: str, share: float, dim: int, at: float, *, sd: float = 1.0, **options: Any) -> Case:
    """q is the first of two modes; the other has `share` of the mass at distance `at`, with its own `sd`."""
    diagonal = options.pop("diagonal", False)
    sds = torch.tensor([1.0, sd]).double().unsqueeze(-1)
    return _mixture(name, [1 - share, share], _along(dim, at, diagonal=diagonal), sds, [0.0] * dim, 1.0, **options)


def _exact_mixture(name: str) -> Case:
    """A plain guide function that equals the posterior."""
    weights, means, sds = [0.5, 0.5], _along(2, 8.0), torch.ones(2, 2).double()

    def guide(x: Tensor) -> None:
        del x
        pyro.sample("h", mixture(weights, means, sds))

    model = plain(mixture(weights, means, sds).log_prob, 2)
    return Case(name, lambda: (finished(model, guide), X), mixture_truth(weights, means, sds), 4000)


def _sine(name: str, at: float, sd: float) -> Case:
    """The frequency of a noisy sine: a posterior with many local modes."""
    t = torch.linspace(0, 6, 25).double()
    noise = torch.randn(25, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    y = torch.sin(2.0 * t) + 0.3 * noise

    def log_density(w: Tensor) -> Tensor:
        fit = dist.Normal(torch.sin(w.unsqueeze(-1) * t), 0.3).log_prob(y).sum(-1)
        return fit + dist.Normal(0.0, 5.0).log_prob(w)

    truth = line_truth(log_density, [(-30.0, 1.9), (1.9, 2.1), (2.1, 30.0)])
    model = Density(lambda h: log_density(h).sum(-1), 1)
    at, sd = (float(truth.mean), float(truth.sd)) if at == 0 else (at, sd)
    return Case(name, lambda: gaussian_fit(model, [at], [sd]), truth)


def _cauchy_location(name: str) -> Case:
    """A Cauchy location with data at two places; q is at one of them."""

    def log_density(h: Tensor) -> Tensor:
        at = torch.tensor([-6.0, -5.5, -6.3, 6.0, 5.6, 6.2]).double()
        return dist.Cauchy(h.unsqueeze(-1), 0.5).log_prob(at).sum(-1) + dist.Normal(0.0, 10.0).log_prob(h)

    truth = line_truth(log_density, [(-30.0, 0.0), (0.0, 30.0)])
    return Case(name, lambda: gaussian_fit(Density(lambda h: log_density(h).sum(-1), 1), [5.93], [0.33]), truth)


def mode_cases() -> list[Case]:
    """Posteriors with several modes."""
    two = torch.tensor([[-2.0], [2.0]]).double()
    near = torch.tensor([[-1.0], [1.0]]).double()
    return [
        _first("half the mass 10 sds away, d = 60", 0.5, 60, 10.0, draws=40_000),
        _first("30 % 10 sds away, d = 100", 0.3, 100, 10.0, draws=40_000),
        _first("30 % 10 sds away, d = 60, plain", 0.3, 60, 10.0, program=plain, draws=40_000),
        _first("40 % 12 sds away along the diagonal, d = 30", 0.4, 30, 12.0, diagonal=True, draws=40_000),
        _first("1.5 % 12 sds away, d = 1", 0.015, 1, 12.0),
        _first("1.5 % 15 sds away, d = 4", 0.015, 4, 15.0),
        _first("1.5 % 9 sds away, d = 12", 0.015, 12, 9.0),
        _first("1 % 20 sds away, d = 2", 0.01, 2, 20.0, program=plain),
        _first("5 % 7 sds away, d = 2", 0.05, 2, 7.0),
        _first("0.3 % 5 sds away, harmless", 0.003, 1, 5.0),
        _first("0.2 % 6 sds away, d = 3, harmless", 0.002, 3, 6.0),
        _first("0.01 % 10 sds away, harmless", 0.0001, 2, 10.0),
        _first("90 % 12 sds away, d = 1", 0.9, 1, 12.0),
        _first("90 % 14 sds away along the diagonal, d = 5", 0.9, 5, 14.0, diagonal=True),
        _first("80 % 40 sds away, d = 3", 0.8, 3, 40.0),
        _first("half the mass 25 sds away, narrow q", 0.5, 2, 25.0, sd=2.0),
        _first("spike, d = 1, sd 0.01", 0.3, 1, 5.0, sd=0.01),
        _first("spike, d = 1, sd 0.03", 0.2, 1, -7.0, sd=0.03),
        _first("spike, d = 2, sd 0.05", 0.3, 2, 5.0, sd=0.05, diagonal=True),
        _first("spike, d = 3, sd 0.1", 0.3, 3, 6.0, sd=0.1, diagonal=True),
        _first("spike, d = 6, sd 0.2", 0.3, 6, 6.0, sd=0.2, diagonal=True),
        _first("spike inside q, d = 1", 0.4, 1, 0.7, sd=0.005),
        _first("narrow spike inside q, d = 1", 0.3, 1, -1.2, sd=0.001),
        _first("25 % 9 sds away, d = 40", 0.25, 40, 9.0),
        _first("10 % 15 sds away, d = 8", 0.1, 8, 15.0, program=plain),
        _first("0.1 % 7 sds away, harmless", 0.001, 2, 7.0),
        _first("0.2 % 4 sds away, harmless", 0.002, 4, 4.0),
        _first("50 % 30 sds away, d = 10", 0.5, 10, 30.0),
        _first("spike, d = 1, sd 0.05", 0.4, 1, 4.0, sd=0.05),
        _first("spike, d = 2, sd 0.1", 0.25, 2, 7.0, sd=0.1),
        _first("wide mode 20 sds away, d = 5", 0.6, 5, 20.0, sd=3.0),
        _mixture("one normal over two modes", [0.5, 0.5], two, [[0.7], [0.7]], [0.0], [4.49**0.5]),
        _mixture("one normal over two near modes", [0.5, 0.5], near, [[0.8], [0.8]], [0.0], [1.64**0.5]),
        _mixture("q between two modes", [0.5, 0.5], 4 * two, [[1.0], [1.0]], [0.0], [1.0]),
        _mixture(
            "four modes in the plane, q on one",
            [0.25] * 4,
            [[5.0, 0.0], [0.0, 5.0], [-5.0, 0.0], [0.0, -5.0]],
            [0.5, 0.5],
            [5.0, 0.0],
            [0.5, 0.5],
        ),
        _exact_mixture("a mixture guide that equals two modes"),
        _sine("frequency of a sine, right mode", 0.0, 0.0),
        _sine("frequency of a sine, wrong mode", 3.2, 0.05),
        _cauchy_location("Cauchy location, one of two modes"),
    ]
