"""Densities of one mode: skewed, heavy or thin tails, edges, correlations and many dimensions."""

from __future__ import annotations

from math import log, pi
from typing import Any

import numpy as np
import pyro.distributions as dist
import torch
from pyro.infer.autoguide import AutoMultivariateNormal
from scipy import stats
from torch import Tensor

from inference.programs.isolation import isolated

from .base import TAIL, Case, Density, Truth, X, finished, gaussian_fit, line_truth, plain

__all__ = ["density_cases"]

Z = stats.norm.ppf(1 - TAIL)


def normal_truth(mean: Tensor, sd: Tensor) -> Truth:
    """The truth about a normalised Gaussian."""
    return Truth(mean, sd, mean - Z * sd, mean + Z * sd, 0.0)


def _gaussian(name: str, covariance: Tensor, mean: Any, root: Any, *, program: Any = Density, draws: int = 200_000) -> Case:
    zero = torch.zeros(len(covariance)).double()
    target = dist.MultivariateNormal(zero, covariance)
    if torch.equal(covariance, torch.eye(len(covariance)).double()):
        target = dist.Normal(zero, 1.0).to_event(1)
    model = program(target.log_prob, len(covariance))
    return Case(name, lambda: gaussian_fit(model, mean, root), normal_truth(target.mean, target.stddev), draws)


def _line(
    name: str, log_density: Any, pieces: Any, mean: float, sd: float, *, copies: int = 1, program: Any = Density
) -> Case:
    """Independent copies of a density on the line, with a normal for each."""
    one = line_truth(log_density, pieces)
    truth = Truth(*(v.expand(copies) for v in one[:4]), copies * one.log_evidence)
    model = program(lambda h: log_density(h).sum(-1), copies)
    return Case(name, lambda: gaussian_fit(model, [mean] * copies, [sd] * copies), truth)


def _matched(name: str, log_density: Any, pieces: Any, **options: Any) -> Case:
    """The same with the density's own mean and sd."""
    truth = line_truth(log_density, pieces)
    return _line(name, log_density, pieces, float(truth.mean), float(truth.sd), **options)


def _correlated(dim: int, rho: float) -> Tensor:
    return (1 - rho) * torch.eye(dim).double() + rho * torch.ones(dim, dim).double()


def half_normal(h: Tensor) -> Tensor:
    return torch.where(h >= 0, -0.5 * h**2, -torch.inf)


def gumbel(h: Tensor) -> Tensor:
    return h - h.clamp(max=30.0).exp()


def student(df: float) -> Any:
    return lambda h: dist.StudentT(torch.tensor(df).double()).log_prob(h)


def _banana(name: str, bend: float) -> Case:
    """h1 ~ Normal(0, 1), h2 ~ Normal(bend (h1² − 1), 1); q has its means and sds."""

    def log_density(h: Tensor) -> Tensor:
        return dist.Normal(0.0, 1.0).log_prob(h[..., 0]) + dist.Normal(bend * (h[..., 0] ** 2 - 1), 1.0).log_prob(h[..., 1])

    grid = np.linspace(-8, 8, 4001)
    weight = stats.norm.pdf(grid) / stats.norm.pdf(grid).sum()
    edges = np.linspace(-12 - abs(bend), 12 + 60 * abs(bend), 20_001)
    cdf = np.array([(weight * stats.norm.cdf(e - bend * (grid**2 - 1))).sum() for e in edges])
    low, high = np.interp([TAIL, 1 - TAIL], cdf, edges)
    sd = torch.tensor([1.0, (1 + 2 * bend**2) ** 0.5]).double()
    truth = Truth(torch.zeros(2).double(), sd, torch.tensor([-Z, low]), torch.tensor([Z, high]), 0.0)
    return Case(name, lambda: gaussian_fit(Density(log_density, 2), [0.0, 0.0], sd), truth)


def _funnel(name: str, mean: list[float], sd: list[float]) -> Case:
    """Neal's funnel: h1 ~ Normal(0, 3), the others Normal(0, exp(h1 / 2))."""
    dim = len(mean)

    def log_density(h: Tensor) -> Tensor:
        v = h[..., :1]
        return dist.Normal(0.0, 3.0).log_prob(v).sum(-1) + dist.Normal(0.0, (v / 2).exp()).log_prob(h[..., 1:]).sum(-1)

    v = np.linspace(-24, 24, 4001)
    weight = stats.norm.pdf(v, 0, 3) / stats.norm.pdf(v, 0, 3).sum()
    edges = np.linspace(0, 400, 40_001)
    cdf = np.array([(weight * stats.norm.cdf(e * np.exp(-v / 2))).sum() for e in edges[::10]])
    high = float(np.interp(1 - TAIL, cdf, edges[::10]))
    wide = float(np.exp(9 / 4))  # sqrt(E[exp(v)])
    sds = torch.tensor([3.0, *[wide] * (dim - 1)]).double()
    ends = torch.tensor([3.0 * Z, *[high] * (dim - 1)]).double()
    return Case(name, lambda: gaussian_fit(Density(log_density, dim), mean, sd), Truth(0 * sds, sds, -ends, ends, 0.0))


def _half_q(name: str) -> Case:
    """q draws on one side only, and is proportional to the posterior there."""
    import pyro

    def guide(x: Tensor) -> None:
        half = dist.HalfNormal(x.new_ones(1)).to_event(1)
        pyro.sample("h", dist.TransformedDistribution(half, [torch.distributions.AffineTransform(0.0, -1.0, event_dim=1)]))

    model = plain(lambda h: dist.Normal(0.0, 1.0).log_prob(h).sum(-1), 1)
    return Case(name, lambda: (finished(model, guide), X), normal_truth(torch.zeros(1).double(), torch.ones(1).double()), 4000)


def _autoguide(name: str, scale: float) -> Case:
    """Pyro's AutoMultivariateNormal with its sds at `scale` times the posterior's."""
    target = dist.MultivariateNormal(torch.zeros(3).double(), _correlated(3, 0.6))
    model = Density(target.log_prob, 3)

    def make() -> tuple[Any, Tensor]:
        with isolated(0):
            guide = AutoMultivariateNormal(model)
            guide(X)
        with torch.no_grad():
            root = torch.linalg.cholesky(target.covariance_matrix)
            guide.double()
            guide.loc.copy_(torch.zeros(3))
            guide.scale = scale * root.diagonal()
            guide.scale_tril = root / root.diagonal().unsqueeze(-1)
        return finished(model, guide), X

    return Case(name, make, normal_truth(target.mean, target.stddev))


def density_cases() -> list[Case]:
    """Densities of one mode."""
    root9, root3 = (1 - 0.81) ** 0.5, (1 - 0.09) ** 0.5
    eye = lambda d: torch.eye(d).double()  # noqa: E731
    wave = lambda d, a: 1 + a * torch.linspace(-1, 1, d).double()  # noqa: E731
    uniform = lambda h: torch.where(h.abs() <= 1, 0.0 * h, -torch.inf)  # noqa: E731
    laplace = lambda h: -h.abs()  # noqa: E731
    lognormal = lambda h: torch.where(  # noqa: E731
        h > 0, -0.5 * h.clamp(min=1e-9).log() ** 2 / 0.25 - h.clamp(min=1e-9).log(), -torch.inf
    )
    logistic = lambda h: -h - 2 * torch.nn.functional.softplus(-h)  # noqa: E731
    quartic = lambda h: -(h**4) / 4  # noqa: E731
    return [
        _gaussian("exact, d = 2", _correlated(2, 0.9), [0.0] * 2, torch.linalg.cholesky(_correlated(2, 0.9))),
        _gaussian("exact, d = 10", _correlated(10, 0.5), [0.0] * 10, torch.linalg.cholesky(_correlated(10, 0.5))),
        _gaussian("exact, d = 60", _correlated(60, 0.5), [0.0] * 60, torch.linalg.cholesky(_correlated(60, 0.5))),
        _gaussian("exact, d = 500", eye(500), [0.0] * 500, [1.0] * 500, draws=20_000),
        _gaussian("sds off by 10 %, d = 500", eye(500), [0.0] * 500, wave(500, 0.1), draws=20_000),
        _gaussian("sds 10 % small, d = 200", eye(200), [0.0] * 200, [0.9] * 200, draws=40_000),
        _gaussian("sds 5 % large, d = 100", eye(100), [0.0] * 100, [1.05] * 100, draws=40_000),
        _gaussian("sds 40 % small, d = 200", eye(200), [0.0] * 200, [0.6] * 200, draws=40_000),
        _gaussian("one mean wrong, d = 100", eye(100), [0.5] + [0.0] * 99, [1.0] * 100, draws=40_000),
        _gaussian("mean field, rho 0.9, d = 2", _correlated(2, 0.9), [0.0] * 2, [root9] * 2),
        _gaussian("mean field, rho 0.3, d = 2", _correlated(2, 0.3), [0.0] * 2, [root3] * 2),
        _gaussian("mean field, rho 0.97, d = 2", _correlated(2, 0.97), [0.0] * 2, [(1 - 0.97**2) ** 0.5] * 2),
        _gaussian("mean field, rho 0.7, d = 20", _correlated(20, 0.7), [0.0] * 20, [0.55] * 20),
        _gaussian("sd 0.6, d = 1", eye(1), [0.0], [0.6]),
        _gaussian("sd 0.6, d = 5", eye(5), [0.0] * 5, [0.6] * 5, program=plain),
        _gaussian("sd 1.5, d = 1", eye(1), [0.0], [1.5]),
        _gaussian("sd 1.5, d = 8", eye(8), [0.0] * 8, [1.5] * 8),
        _gaussian("mean off by 0.5, d = 1", eye(1), [0.5], [1.0]),
        _gaussian("mean off by 0.08, d = 3", eye(3), [0.08] * 3, [1.0] * 3, program=plain),
        _gaussian("mean off by 3, d = 2", eye(2), [3.0, 0.0], [0.5] * 2),
        _line("half normal, 9 % outside", half_normal, [(0.0, 9.0)], 0.8, 0.6),
        _line("half normal, 2 % outside", half_normal, [(0.0, 9.0)], 0.8, 0.39),
        _matched("uniform", uniform, [(-1.0, 1.0)]),
        _matched("Laplace", laplace, [(-40.0, 0.0), (0.0, 40.0)]),
        _matched("Gumbel", gumbel, [(-40.0, 5.0)]),
        _matched("Gumbel, d = 6", gumbel, [(-40.0, 5.0)], copies=6, program=plain),
        _matched("Gumbel, d = 40", gumbel, [(-40.0, 5.0)], copies=40),
        _matched("logistic, d = 4", logistic, [(-40.0, 40.0)], copies=4),
        _matched("quartic", quartic, [(-6.0, 6.0)]),
        _matched("quartic, d = 10", quartic, [(-6.0, 6.0)], copies=10),
        _matched("log-normal", lognormal, [(0.0, 20.0)]),
        _matched("Student, df 10", student(10.0), [(-60.0, 0.0), (0.0, 60.0)]),
        _line("Student, df 8, d = 4, thin q", student(8.0), [(-90.0, 0.0), (0.0, 90.0)], 0.0, 1.03, copies=4),
        _line("Student, df 3, narrow q", student(3.0), [(-400.0, 0.0), (0.0, 400.0)], 0.0, 1.15),
        Case(
            "Cauchy",
            lambda: gaussian_fit(Density(lambda h: -(1 + h**2).log().sum(-1), 1), [0.0], [1.5]),
            Truth(*(torch.full((1,), torch.nan).double(),) * 4, log(pi)),
        ),
        _banana("banana, bend 0.15", 0.15),
        _banana("banana, bend 0.6", 0.6),
        _banana("banana, bend 2", 2.0),
        _funnel("funnel, q at its mouth", [1.0, 0.0, 0.0], [1.0, 1.0, 1.0]),
        _funnel("funnel, q in its neck", [-3.0, 0.0, 0.0, 0.0], [1.0, 0.2, 0.2, 0.2]),
        _half_q("q on half of the posterior"),
        _gaussian("mean field, rho 0.95, d = 3", _correlated(3, 0.95), [0.0] * 3, [0.28] * 3),
        _gaussian("sd 0.7, d = 3", eye(3), [0.0] * 3, [0.7] * 3),
        _gaussian("sd 1.3, d = 2", eye(2), [0.0] * 2, [1.3] * 2, program=plain),
        _gaussian("mean off by 0.35, d = 4", eye(4), [0.35] * 4, [1.0] * 4),
        _gaussian("mean off by 0.1, d = 20", eye(20), [0.1] * 20, [1.0] * 20),
        _matched("logistic, d = 15", logistic, [(-40.0, 40.0)], copies=15),
        _matched("Laplace, d = 3", laplace, [(-40.0, 0.0), (0.0, 40.0)], copies=3, program=plain),
        _matched("quartic, d = 3", quartic, [(-6.0, 6.0)], copies=3),
        _matched("Student, df 6, d = 2", student(6.0), [(-90.0, 0.0), (0.0, 90.0)], copies=2),
        _matched("Student, df 5", student(5.0), [(-200.0, 0.0), (0.0, 200.0)]),
        _autoguide("AutoMultivariateNormal, exact", 1.0),
        _autoguide("AutoMultivariateNormal, half the sds", 0.5),
    ]
