"""NaN under a mask is data like any other: values and gradients are those of the same data with any number in its place."""

from __future__ import annotations

import dataclasses
import inspect

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoNormal

from inference import elbo, fit, objectives
from inference.objectives import AnalyticELBO, AnalyticKL, Enumerated, TraceELBO
from inference.programs.isolation import isolated

EXPORTS = [getattr(objectives, name) for name in objectives.__all__]
ALL = [export for export in EXPORTS if inspect.isclass(export) and dataclasses.is_dataclass(export)]
DRAWING = [cls for cls in ALL if cls not in (AnalyticELBO, Enumerated)]
X = torch.tensor([0.3, torch.nan, 0.8, 1.9, torch.inf, 2.2]).double()
SEEN = X.isfinite()


def positive(x):
    """A support on which 0 has an infinite density."""
    with pyro.plate("data", len(x)), poutine.mask(mask=SEEN):
        return pyro.sample("x", dist.Gamma(pyro.sample("h", dist.LogNormal(latent(x), 1.0)), 1.0), obs=x)


def latent(x):
    return torch.zeros(len(x)).double()


def by_poutine(x):
    with pyro.plate("data", len(x)):
        h = pyro.sample("h", dist.Normal(latent(x), 1.0))
        with poutine.mask(mask=SEEN):
            pyro.sample("x", dist.Normal(h, 0.7), obs=x)


def by_distribution(x):
    with pyro.plate("data", len(x)):
        h = pyro.sample("h", dist.Normal(latent(x), 1.0))
        pyro.sample("x", dist.Normal(h, 0.7).mask(SEEN), obs=x)


def by_distribution_in_an_event(x):
    h = pyro.sample("h", dist.Normal(latent(x)[0], 1.0))
    pyro.sample("x", dist.Normal(h, 0.7).expand(x.shape).mask(SEEN).to_event(1), obs=x)


def by_both(x):
    with pyro.plate("data", len(x)), poutine.mask(mask=SEEN | X.isnan()):
        h = pyro.sample("h", dist.Normal(latent(x), 1.0))
        pyro.sample("x", dist.Normal(h, 0.7).mask(SEEN | X.isinf()), obs=x)


def imputed(x):
    h = pyro.sample("h", dist.Normal(latent(x)[0], 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(h, 0.7).expand(x.shape), obs=x, obs_mask=SEEN)


def rows(x):
    """One mask for each row of two numbers; a row with NaN is hidden."""
    table = x.reshape(3, 2)
    with pyro.plate("data", 3):
        h = pyro.sample("h", dist.Normal(latent(table), 1.0))
        with poutine.mask(mask=SEEN.reshape(3, 2).all(-1)):
            pyro.sample("x", dist.Normal(h.unsqueeze(-1), 0.7).expand([3, 2]).to_event(1), obs=table)


MASKED = [by_poutine, by_distribution, by_distribution_in_an_event, by_both, imputed, rows, positive]


def estimates(objective, model, x):
    """Values and gradients of three calls."""
    with isolated(0):
        guide = AutoNormal(model)
        guide(x)
        parameters = list(guide.parameters())
        found = []
        for _ in range(3):
            loss = objective(model, guide, (x,), {})
            found += [loss.value.view(1), *(g.reshape(-1) for g in torch.autograd.grad(loss.surrogate, parameters))]
    return torch.cat(found)


@pytest.mark.parametrize("model", MASKED)
@pytest.mark.parametrize("cls", DRAWING)
def test_objectives(cls, model):
    if cls is AnalyticKL:
        pytest.skip("a guide that passes its draws on has no KL in closed form")
    found = estimates(cls(), model, X)
    assert found.isfinite().all()
    torch.testing.assert_close(found, estimates(cls(), model, X.where(SEEN, 1.3)), atol=1e-10, rtol=0.0)


@pytest.mark.parametrize("model", MASKED)
def test_elbo_and_fit(model):
    whole = X.where(SEEN, 1.3)
    with isolated(0):
        guide = AutoNormal(model)
        guide(X)
    assert abs(elbo(model, guide, X).value - elbo(model, guide, whole).value) < 1e-10
    losses = [fit(model, AutoNormal(model), x, steps=3, objective=TraceELBO(), seed=1).nelbo for x in (X, whole)]
    torch.testing.assert_close(*losses, atol=1e-10, rtol=0.0)


@pytest.mark.parametrize("mask", [None, torch.ones(6, dtype=torch.bool), ~SEEN, SEEN | X.isnan(), SEEN | X.isinf()])
def test_what_no_mask_hides_is_refused(mask):
    def model(x):
        with pyro.plate("data", len(x)):
            h = pyro.sample("h", dist.Normal(latent(x), 1.0))
            with poutine.mask(mask=mask):
                pyro.sample("x", dist.Normal(h, 0.7), obs=x)

    for call in (lambda: fit(model, AutoNormal(model), X, steps=2), lambda: elbo(model, AutoNormal(model), X)):
        with pytest.raises(ValueError, match="holds (nan|inf) in row . data must be finite where no mask|holds nan in row 1"):
            call()


def test_the_model_keeps_its_data():
    """It is scored at other values, but sees its own."""
    seen = []

    def model(x):
        h = pyro.sample("h", dist.Normal(latent(x)[0], 1.0))
        with pyro.plate("data", len(x)), poutine.mask(mask=SEEN):
            seen.append(pyro.sample("x", dist.Normal(h, 0.7), obs=x))

    def guide(x):
        pyro.sample("h", dist.Normal(pyro.param("m", torch.tensor(0.1).double()), 0.5))

    fit(model, guide, X, steps=2)
    assert all(value is X for value in seen)
