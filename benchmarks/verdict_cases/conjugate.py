"""Textbook conjugate posteriors with the best normal in the unconstrained coordinate."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from scipy import stats
from scipy.optimize import minimize
from scipy.special import betaln, gammaln

from inference.programs.log_joint import LogJoint

from .base import TAIL, Case, Truth, gaussian_fit

__all__ = ["conjugate_cases"]


def best_normal(program: Any, x: Any) -> tuple[float, float]:
    """Location and scale of the normal with the highest ELBO, by Gauss–Hermite quadrature."""
    joint = LogJoint(program, x)
    nodes, weights = np.polynomial.hermite_e.hermegauss(80)
    nodes, weights = torch.from_numpy(nodes), torch.from_numpy(weights / weights.sum())

    def nelbo(at: np.ndarray) -> float:
        with torch.no_grad():
            u = at[0] + np.exp(at[1]) * nodes
            return -float((weights * joint(u.unsqueeze(-1))).sum()) - at[1]

    found = minimize(nelbo, np.zeros(2), method="Nelder-Mead", options={"xatol": 1e-6, "fatol": 1e-10, "maxiter": 2000})
    return float(found.x[0]), float(np.exp(found.x[1]))


def truth_of(posterior: Any, log_evidence: float) -> Truth:
    """The truth about a scipy distribution."""
    values = (posterior.mean(), posterior.std(), posterior.ppf(TAIL), posterior.ppf(1 - TAIL))
    return Truth(*(torch.tensor([float(v)], dtype=torch.float64) for v in values), log_evidence)


def _case(name: str, program: Callable[..., Any], x: Any, posterior: Any, log_evidence: float) -> Case:
    return Case(
        name, lambda: gaussian_fit(program, *([v] for v in best_normal(program, x)), x), truth_of(posterior, log_evidence)
    )


def _coin(name: str, heads: int, tails: int, a: float, b: float) -> Case:
    def program(x):
        p = pyro.sample("p", dist.Beta(x.new_tensor(a), x.new_tensor(b)))
        pyro.sample("x", dist.Bernoulli(p).expand(x.shape).to_event(1), obs=x)

    x = torch.cat([torch.ones(heads), torch.zeros(tails)]).double()
    return _case(name, program, x, stats.beta(a + heads, b + tails), betaln(a + heads, b + tails) - betaln(a, b))


def _gamma(  # noqa: PLR0917 - a line of a table
    name: str, likelihood: Callable[[Any], Any], x: list[float], a: float, b: float, n: float, s: float, base: float
):
    """Rate ~ Gamma(a, b) with a posterior Gamma(a + n, b + s); `base` is the rest of the log likelihood."""

    def program(x):
        rate = pyro.sample("rate", dist.Gamma(x.new_tensor(a), x.new_tensor(b)))
        pyro.sample("x", likelihood(rate).expand(x.shape).to_event(1), obs=x)

    evidence = base + a * np.log(b) - gammaln(a) + gammaln(a + n) - (a + n) * np.log(b + s)
    return _case(name, program, torch.tensor(x).double(), stats.gamma(a + n, scale=1 / (b + s)), float(evidence))


def _variance(name: str, x: list[float], a: float, b: float) -> Case:
    def program(x):
        v = pyro.sample("v", dist.InverseGamma(x.new_tensor(a), x.new_tensor(b)))
        pyro.sample("x", dist.Normal(0.0 * v, v.sqrt()).expand(x.shape).to_event(1), obs=x)

    n, s = len(x), float(np.square(x).sum()) / 2
    evidence = -0.5 * n * np.log(2 * np.pi) + a * np.log(b) - gammaln(a) + gammaln(a + n / 2) - (a + n / 2) * np.log(b + s)
    return _case(name, program, torch.tensor(x).double(), stats.invgamma(a + n / 2, scale=b + s), float(evidence))


def _mean(name: str, x: list[float], *, prior: str) -> Case:
    """A normal mean: with a proper normal prior, or a flat one written in two ways."""

    def program(x):
        if prior == "proper":
            mu = pyro.sample("mu", dist.Normal(x.new_zeros(()), 10.0))
        elif prior == "masked":
            mu = pyro.sample("mu", dist.Normal(x.new_zeros(()), 1.0).mask(False))
        else:
            mu = pyro.sample("mu", dist.ImproperUniform(constraints.real, (), ()))
        pyro.sample("x", dist.Normal(mu, 2.0).expand(x.shape).to_event(1), obs=x)

    data = np.asarray(x)
    precision = len(x) / 4 + (0.01 if prior == "proper" else 0.0)
    posterior = stats.norm(data.sum() / 4 / precision, precision**-0.5)
    at = posterior.mean()
    evidence = float(stats.norm(at, 2).logpdf(data).sum() + stats.norm(0, 10).logpdf(at) - posterior.logpdf(at))
    evidence = evidence if prior == "proper" else float("nan")
    return _case(name, program, torch.tensor(x).double(), posterior, evidence)


def conjugate_cases() -> list[Case]:
    """A coin, nine further textbook posteriors, and flat priors."""
    counts, waits = [2.0, 4.0, 1.0, 3.0], [0.4, 1.3, 0.2, 0.9, 2.1]
    return [
        _coin("coin, 7 heads of 10", 7, 3, 1.0, 1.0),
        _coin("coin, 2 heads of 3", 2, 1, 1.0, 1.0),
        _coin("coin, no head of 10", 0, 10, 1.0, 1.0),
        _coin("coin, 30 heads of 100", 30, 70, 2.0, 2.0),
        _coin("coin, arcsine prior", 1, 1, 0.5, 0.5),
        _gamma("Poisson rate", dist.Poisson, counts, 2.0, 1.0, sum(counts), 4, -float(gammaln(np.array(counts) + 1).sum())),
        _gamma("Poisson rate, one small count", dist.Poisson, [1.0], 1.0, 1.0, 1, 1, 0.0),
        _gamma("exponential rate", dist.Exponential, waits, 2.0, 2.0, 5, sum(waits), 0.0),
        _variance("normal variance", [0.5, -1.2, 2.0, 0.3, -0.7, 1.1], 3.0, 2.0),
        _variance("normal variance, twenty data", list(np.linspace(-2, 2, 20)), 3.0, 2.0),
        _mean("normal mean", [1.0, 3.0, 2.5], prior="proper"),
        _mean("flat prior by a mask", [1.0, 3.0, 2.5], prior="masked"),
        _mean("flat prior by ImproperUniform", [1.0, 3.0, 2.5, 0.5], prior="improper"),
    ]
