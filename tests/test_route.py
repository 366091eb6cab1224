"""A fit that names no option: natural gradients where they apply, checked, and giving way where they do not hold."""

from __future__ import annotations

import math
import sys

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints
from pyro.infer.autoguide import AutoDiagonalNormal, AutoMultivariateNormal, AutoNormal
from torch.distributions import MultivariateNormal, kl_divergence

from guides import Amortized, Flow, FullRank, Global, Local, MeanField
from inference import elbo, fit
from inference.optimisers import NaturalGradient, Solution
from inference.stopping import MaxSteps
from models import FactorAnalysis, LinearVAE

ROWS, SCALES = 60, torch.tensor([1.0, 30.0, 0.02], dtype=torch.float64)
GUIDES = {
    "AutoNormal": AutoNormal,
    "AutoDiagonalNormal": AutoDiagonalNormal,
    "AutoMultivariateNormal": AutoMultivariateNormal,
    "mean field": lambda model: Global(model, MeanField()),
    "full rank": lambda model: Global(model, FullRank()),
}
DIAGONAL = {"AutoNormal", "AutoDiagonalNormal", "mean field"}


@pytest.fixture(autouse=True)
def in_float64():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


def table():
    return torch.randn(ROWS, 3, generator=torch.Generator().manual_seed(0)) * SCALES


def regression(table, y):
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    b = pyro.sample("b", dist.Normal(torch.zeros(3), 3 / SCALES).to_event(1))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(a + table @ b, 0.5), obs=y)


def posterior(table, y):
    """The exact posterior of (a, b)."""
    design = torch.cat([torch.ones(ROWS, 1), table], -1)
    precision = design.T @ design / 0.25 + torch.cat([torch.ones(1), (SCALES / 3) ** 2]).diag()
    return MultivariateNormal(torch.linalg.solve(precision, design.T @ y / 0.25), precision_matrix=precision)


@pytest.mark.parametrize("name", GUIDES)
def test_units_of_covariates_make_no_difference(name):
    """The optimum of the family is reached to rounding, for covariates of sd 1, 30 and 0.02."""
    x = table()
    y = x @ (1 / SCALES) + 0.5
    exact = posterior(x, y)
    done = fit(regression, GUIDES[name](regression), (x, y))
    assert done.stop.converged
    assert [attempt.name for attempt in done.route] == ["NaturalGradient"]
    found = elbo(done.model, done.guide, (x, y), draws=50)
    log_p = float(dist.MultivariateNormal(torch.zeros(ROWS), _covariance(x)).log_prob(y))
    gap = 0.0
    if name in DIAGONAL:
        gap = 0.5 * float(exact.precision_matrix.diagonal().log().sum() - exact.precision_matrix.logdet())
        assert gap > 0.01
    assert abs(found.value - (log_p - gap)) < 5 * found.se + 1e-6
    assert abs(done.route[0].elbo - (log_p - gap)) < 0.2
    loc, scale = _moments(done.guide)
    torch.testing.assert_close(loc, exact.loc, rtol=1e-6, atol=1e-8)
    precision = exact.precision_matrix.diagonal() if name in DIAGONAL else 1 / exact.variance
    torch.testing.assert_close(scale, precision.rsqrt(), rtol=1e-6, atol=1e-8)


def _covariance(x):
    return 0.25 * torch.eye(ROWS) + torch.ones(ROWS, ROWS) + (x * (3 / SCALES) ** 2) @ x.T


def _moments(guide):
    if isinstance(guide, AutoNormal):
        return tuple(torch.cat([p.a.reshape(1), p.b]).detach() for p in (guide.locs, guide.scales))
    q = guide.q() if isinstance(guide, Global) else guide.get_posterior()
    return q.mean.detach(), q.variance.sqrt().detach()


@pytest.mark.parametrize(
    "name", ["AutoNormal", *(pytest.param(n, marks=pytest.mark.slow) for n in GUIDES if n != "AutoNormal")]
)
def test_a_poisson_regression_with_groups(name):
    """Latents with supports, inside and outside plates. No other start comes to a higher ELBO."""
    group = torch.arange(ROWS) % 4
    x = table()
    y = torch.poisson((0.3 * x[:, 0] + 0.5).exp(), generator=torch.Generator().manual_seed(1))

    def model(x, y):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        sigma = pyro.sample("sigma", dist.HalfNormal(1.0))
        b = pyro.sample("b", dist.Normal(torch.zeros(3), 1 / SCALES).to_event(1))
        with pyro.plate("groups", 4):
            level = pyro.sample("level", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Poisson((mu + sigma * level[group] + x @ b).exp()), obs=y)

    done = fit(model, GUIDES[name](model), (x, y))
    assert [attempt.name for attempt in done.route] == ["NaturalGradient"]
    assert done.stop.converged
    rival = fit(model, GUIDES[name](model), (x, y), optimiser=NaturalGradient(tolerance=1e-3, starts=5), seed=1)
    one, two = (elbo(f.model, f.guide, (x, y), draws=2000) for f in (done, rival))
    assert two.value - one.value < 0.02 + 5 * (one.se**2 + two.se**2) ** 0.5


def test_one_q_for_each_datum():
    model, x = FactorAnalysis.demo()
    done = fit(model, Local(model, FullRank()), x)
    assert done.route[0].name == "NaturalGradient"
    assert abs(done.nelbo[-1] + model.log_evidence(x).sum()) < 1e-6


def test_the_higher_of_two_modes():
    """The start lies in the basin of a mode that holds 1 % of the mass."""

    def model(x):
        h = pyro.sample("h", dist.Normal(0.0, 100.0))
        parts = torch.stack(
            [dist.Normal(1.5, 0.05).log_prob(h) + math.log(0.99), dist.Normal(-0.3, 0.05).log_prob(h) + math.log(0.01)]
        )
        pyro.factor("modes", parts.logsumexp(0) + 0.0 * x.sum())

    done = fit(model, AutoNormal(model, init_loc_fn=lambda site: torch.tensor(-0.3)), torch.zeros(1))
    assert abs(done.guide.locs.h - 1.5) < 0.05


class TestWhatIsNamed:
    """A fit that names an option of the method takes it, and no other."""

    @pytest.mark.parametrize(
        "options", [{"steps": 3}, {"optimiser": torch.optim.Adam, "stop": MaxSteps(3)}, {"lr": 0.1, "steps": 3}]
    )
    def test_no_natural_gradients(self, options):
        x = table()
        done = fit(regression, AutoNormal(regression), (x, x[:, 0]), **options)
        assert [(a.name, a.reason) for a in done.route] == [("Adam", done.stop.reason)]
        assert done.steps == 3

    def test_a_solver(self):
        x = table()
        done = fit(regression, AutoNormal(regression), (x, x[:, 0]), optimiser=NaturalGradient())
        assert [a.name for a in done.route] == ["NaturalGradient"]


class TestWhereItDoesNotApply:
    """Another guide, or a model that learns, has the route that it had."""

    @pytest.mark.parametrize("source", [lambda m: Amortized(m, MeanField()), lambda m: Local(m, Flow())])
    def test_another_guide(self, source):
        model, x = FactorAnalysis.demo()
        done = fit(model, source(model), x, seconds=0.2)
        assert [a.name for a in done.route] == ["Adam"]
        assert not done.stop.converged
        assert "seconds" in done.stop.reason

    def test_a_model_that_learns(self):
        model, x = LinearVAE.demo()
        done = fit(model, Local(model, MeanField()), x, seconds=0.2)
        assert [a.name for a in done.route] == ["Adam"]

    def test_a_plain_model_that_learns(self):
        def model(x):
            scale = pyro.param("scale", torch.ones(()), constraint=constraints.positive)
            h = pyro.sample("h", dist.Normal(0.0, 1.0))
            with pyro.plate("data", len(x)):
                pyro.sample("x", dist.Normal(h, scale), obs=x)

        done = fit(model, AutoNormal(model), torch.randn(8), seconds=0.2)
        assert [a.name for a in done.route] == ["Adam"]


class TestGivingWay:
    """A result that does not hold is undone: what follows takes the steps that it would have taken alone."""

    @staticmethod
    def diverged(solver, task, *, steps):
        with torch.no_grad():
            for parameter in task.parameters:
                parameter.add_(torch.randn_like(parameter))
        return Solution.diverged([1.0])

    @staticmethod
    def failed(solver, task, *, steps):
        torch.randn(3)
        raise RuntimeError("no solution")

    @staticmethod
    def claims_too_much(solver, task, *, steps):
        return Solution.met([-1e6])

    @staticmethod
    def made_worse(solver, task, *, steps):
        with torch.no_grad():
            task.parameters[0].add_(100.0)
        return Solution.met([1e9])

    @pytest.mark.parametrize(
        ("how", "why"),
        [
            ("diverged", "diverged"),
            ("failed", "failed"),
            ("claims_too_much", "below the solver's own"),
            ("made_worse", "less than"),
        ],
    )
    def test_the_next_route_starts_where_it_would_have(self, how, why, monkeypatch):
        def model(x):
            h = pyro.sample("h", dist.Normal(0.0, 1.0))
            with pyro.plate("data", len(x)):
                pyro.sample("x", dist.Normal(h, 1.0), obs=x)

        x = torch.linspace(-1, 2, 5)
        alone = fit(model, AutoNormal(model), x, stop=MaxSteps(5))
        monkeypatch.setattr(NaturalGradient, "solve", getattr(self, how))
        monkeypatch.setattr(sys.modules["inference.fitting.fit"], "Converged", lambda: MaxSteps(5))
        done = fit(model, AutoNormal(model), x)
        assert torch.equal(done.nelbo, alone.nelbo)
        assert [a.name for a in done.route] == ["NaturalGradient", "Adam"]
        assert why in done.route[0].reason


@pytest.mark.parametrize("seconds", [0, -1.0, math.nan])
def test_a_budget_must_be_positive(seconds):
    x = table()
    with pytest.raises(ValueError, match="seconds must be"):
        fit(regression, AutoNormal(regression), (x, x[:, 0]), seconds=seconds)


def test_a_budget_that_ends_natural_gradients():
    """What there is when the time is over is returned, with the distance that is left."""
    x = table()
    y = torch.poisson(torch.ones(ROWS))

    def model(x, y):
        b = pyro.sample("b", dist.Normal(torch.zeros(3), 1 / SCALES).to_event(1))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Poisson((x @ b).exp()), obs=y)

    done = fit(model, Global(model, FullRank()), (x, y), seconds=1e-3)
    assert not done.stop.converged
    assert "used up its time" in done.stop.reason
    assert done.stop.distance >= 0
    assert kl_divergence(done.guide.q(), done.guide.q()) == 0
