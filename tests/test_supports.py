"""Latents whose support torch has no bijection to: mixtures take that of their components, others are refused by name."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from scipy import integrate

from guides import FullRank, Global, Local, MeanField
from inference import elbo, fit
from inference.programs.log_joint import LogJoint

WEIGHTS = torch.tensor([0.3, 0.7], dtype=torch.float64)
X = torch.tensor([0.5, 1.5, 0.8], dtype=torch.float64)


def two(*values):
    return torch.tensor(values, dtype=torch.float64)


def mixture(components, weights=WEIGHTS):
    return dist.MixtureSameFamily(dist.Categorical(weights), components)


PRIORS = {
    "real": lambda: mixture(dist.Normal(two(-1.0, 1.0), two(0.5, 1.0))),
    "positive": lambda: mixture(dist.Gamma(two(2.0, 5.0), two(1.0, 3.0))),
    "unit interval": lambda: mixture(dist.Beta(two(2.0, 5.0), two(4.0, 3.0))),
    "shared bounds": lambda: mixture(dist.Uniform(two(-1.0, -1.0), two(2.0, 2.0))),
}


def model_of(prior):
    def model(x):
        h = pyro.sample("h", prior())
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(h, 1.0), obs=x)

    return model


@pytest.mark.parametrize("kind", PRIORS)
def test_the_density_integrates_to_the_evidence(kind):
    """In unconstrained space, with the Jacobian of the components' support."""
    model = model_of(PRIORS[kind])
    joint = LogJoint(model, X)

    def density(u):
        return float(joint(torch.tensor([[u]], dtype=torch.float64)).exp())

    def direct(h):
        value = torch.tensor(h, dtype=torch.float64)
        return float((PRIORS[kind]().log_prob(value) + dist.Normal(value, 1.0).log_prob(X).sum()).exp())

    low, high = {"real": (-8, 8), "positive": (0, 12), "unit interval": (0, 1), "shared bounds": (-1, 2)}[kind]
    exact = integrate.quad(direct, low, high)[0]
    assert integrate.quad(density, -15, 15, limit=200)[0] == pytest.approx(exact, rel=1e-6)


@pytest.mark.parametrize("kind", PRIORS)
def test_guides_draw_inside_the_support(kind):
    model = model_of(PRIORS[kind])
    guide = Global(model, FullRank())
    fit(model, guide, X, steps=20, lr=0.05)
    assert elbo(model, guide, X, draws=50).value < 0
    draw = poutine.trace(guide).get_trace(X).nodes["h"]["value"]
    assert PRIORS[kind]().support.check(draw).all()


def test_a_local_vector_with_a_mixture_prior():
    def model(x):
        with pyro.plate("data", len(x)):
            components = dist.Normal(torch.zeros(2, 3).double(), 1.0).to_event(1)
            h = pyro.sample("h", mixture(components))
            pyro.sample("x", dist.Normal(h.sum(-1), 1.0), obs=x)

    guide = Local(model, MeanField())
    guide.setup(X)
    assert guide.latents.dim == 3
    assert guide.latents.sites[0].is_vector


@pytest.mark.parametrize(
    "prior",
    [
        lambda: mixture(dist.Uniform(two(-1.0, 0.0), two(2.0, 3.0))),
        lambda: dist.ProjectedNormal(two(1.0, 0.0, 0.0)),
    ],
)
def test_what_no_bijection_leads_to_is_refused_by_name(prior):
    with pytest.raises(ValueError, match="the latent 'h' .* no bijection from unconstrained space"):
        Global(lambda x: pyro.sample("h", prior()), MeanField()).setup(X)
