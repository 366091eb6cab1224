"""A guide with mass where the prior is zero is refused, with the site and the share, by every function alike."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from problems import ALL_MODELS
from pyro import poutine
from pyro.distributions import constraints
from pyro.infer.autoguide import AutoNormal, AutoNormalMessenger
from scipy.stats import norm

from guides import Prior
from inference import ais, elbo, fit, fit_many, iwae
from inference.diagnostics import importance
from inference.programs.isolation import isolated
from inference.programs.support import CHECKED_DRAWS, check_support

X = torch.tensor([0.4, 1.2, 0.7])
PRIORS = {
    "Exponential": dist.Exponential(1.0),
    "Gamma": dist.Gamma(2.0, 1.0),
    "LogNormal": dist.LogNormal(0.0, 1.0),
    "HalfNormal": dist.HalfNormal(1.0),
    "Beta": dist.Beta(2.0, 2.0),
    "Uniform": dist.Uniform(0.0, 1.0),
    "masked": dist.Exponential(1.0).expand([2]).to_event(1),
}


def pair(prior, loc=0.3, scale=0.5):
    def model(x):
        h = pyro.sample("h", prior)
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(h.sum(), 1.0), obs=x)

    def guide(x):
        m = pyro.param("m", torch.tensor(loc))
        s = pyro.param("s", torch.tensor(scale), constraint=constraints.positive)
        pyro.sample("h", dist.Normal(m, s).expand(prior.shape()).to_event(prior.event_dim))

    return model, guide


CALLS = {
    "elbo": lambda model, guide: elbo(model, guide, X),
    "iwae": lambda model, guide: iwae(model, guide, X),
    "ais": lambda model, guide: ais(model, guide, X),
    "importance": lambda model, guide: importance(model, guide, X),
    "fit": lambda model, guide: fit(model, guide, X, steps=2),
    "the default fit": lambda model, guide: fit(model, guide, X),
    "fit_many": lambda model, guide: fit_many([(model, guide)], X, seeds=[0], steps=2),
}


@pytest.mark.parametrize("validated", [True, False])
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize("prior", PRIORS.values(), ids=PRIORS)
def test_is_refused_by(call, prior, validated):
    with pyro.validation_enabled(validated), pytest.raises(ValueError, match="draws the latent 'h' outside the support"):
        call(*pair(prior))


def test_says_the_share():
    with isolated(0), pytest.raises(ValueError, match="outside the support") as error:
        check_support(*pair(dist.Exponential(1.0)), (X,), {})
    share = float(str(error.value).split(" % of")[0].rsplit(" ", 1)[1]) / 100
    expected = norm.cdf(-0.3 / 0.5)
    assert abs(share - expected) < 5 * (expected * (1 - expected) / CHECKED_DRAWS) ** 0.5


def test_of_a_guide_that_leaves_it_in_the_fit():
    """It starts where a draw outside has a probability of 1e-15, and is moved there by data that say so."""
    model, guide = pair(dist.Exponential(1.0), loc=4.0, scale=0.5)
    options = {"steps": 60, "lr": 0.3}
    with pytest.raises(ValueError, match="draws the latent 'h' outside the support"):
        fit(model, guide, X - 4.0, **options)
    with pytest.raises(ValueError, match="draws the latent 'h' outside the support"):
        fit_many([(model, guide), pair(dist.Exponential(1.0), loc=4.0, scale=0.5)], X - 4.0, seeds=[0, 1], **options)


def test_support_that_depends_on_a_latent():
    def model(x):
        top = pyro.sample("top", dist.LogNormal(0.0, 1.0))
        u = pyro.sample("u", dist.Uniform(0.0, top))
        pyro.sample("x", dist.Normal(u, 1.0).expand(x.shape).to_event(1), obs=x)

    for seed in range(3):
        with pytest.raises(ValueError, match="draws the latent 'u' outside"):
            fit(model, AutoNormal(model, init_scale=0.9), X, steps=2, seed=seed)
    assert fit(model, AutoNormalMessenger(model), X, steps=2).steps == 2


def test_masked_draws_are_no_draws():
    mask = torch.tensor([True, False, True])

    def model(x):
        with pyro.plate("data", len(x)), poutine.mask(mask=mask):
            h = pyro.sample("h", dist.Exponential(torch.ones(3)))
            pyro.sample("x", dist.Normal(h, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("h", dist.Normal(torch.tensor([9.0, -9.0, 9.0]), 1e-3))

    check_support(model, guide, (X,), {})


@pytest.mark.parametrize("model_class", ALL_MODELS)
def test_right_guides_are_not_refused_and_make_no_further_draws(model_class, monkeypatch):
    model, x = model_class.demo()
    with isolated(0):
        guides = [Prior(model)]
        if not any(s["fn"].support.is_discrete for s in latents_of(model, x)):
            guides += [AutoNormal(model), AutoNormalMessenger(model)]
        for guide in guides:
            guide(x)
    monkeypatch.setattr("inference.programs.support.CHECKED_DRAWS", -1)
    for guide in guides:
        with isolated(0):
            check_support(model, guide, (x,), {})


def latents_of(model, x):
    nodes = poutine.trace(model).get_trace(x).nodes.values()
    return [s for s in nodes if s["type"] == "sample" and not s["is_observed"] and hasattr(s["fn"], "support")]


def test_the_random_state_stays():
    before = torch.get_rng_state()
    with isolated(0), pytest.raises(ValueError, match="outside"):
        check_support(*pair(dist.Exponential(1.0)), (X,), {})
    assert torch.equal(before, torch.get_rng_state())
