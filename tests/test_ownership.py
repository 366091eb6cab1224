"""A `Fit` owns its parameters: nothing that happens later changes its numbers."""

from __future__ import annotations

import copy

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from pyro.nn import PyroModule, PyroParam

from guides import Amortized, Global, Linear, MeanField
from inference import elbo, fit
from inference.engine import Eager
from models import FactorAnalysis


def plain_model(x):
    with pyro.plate("data", len(x)):
        h = pyro.sample("h", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(h, 1.0), obs=x)


def a_vae():
    """A pair whose nets lie in the enclosing scope, as in Pyro's tutorial."""
    torch.manual_seed(0)
    encoder, decoder = torch.nn.Linear(3, 4), torch.nn.Linear(2, 3)

    def model(x):
        pyro.module("decoder", decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(decoder(z), 0.5).to_event(1), obs=x)

    def guide(x):
        pyro.module("encoder", encoder)
        with pyro.plate("data", len(x)):
            loc, log_scale = encoder(x).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))

    return model, guide


def a_learned_model():
    learned = FactorAnalysis(torch.nn.Parameter(torch.ones(3, 2)))
    return learned, Amortized(learned, MeanField(), Linear())


def a_module_in_a_closure():
    class Net(PyroModule):
        def __init__(self):
            super().__init__()
            self.loc = PyroParam(torch.zeros(3))

        def forward(self):
            return self.loc

    net = Net()

    def model(x):
        h = pyro.sample("h", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(h, 1.0).to_event(1), obs=x)

    def guide(x):
        pyro.sample("h", dist.Normal(net(), 0.5).to_event(1))

    return model, guide


PAIRS_THAT_LEARN = [a_vae, a_learned_model, a_module_in_a_closure, lambda: (plain_model, AutoNormal(plain_model))]


class TestAFitOwnsItsParameters:
    x = torch.linspace(-1.0, 1.0, 18).reshape(6, 3).sin()

    @pytest.mark.parametrize("make", PAIRS_THAT_LEARN)
    @pytest.mark.parametrize("again", ["the pair", "the fit", "by Pyro"])
    def test_later_training_changes_none_of_its_numbers(self, make, again):
        model, guide = make()
        x = self.x if make is not PAIRS_THAT_LEARN[-1] else self.x[:, 0]
        first = fit(model, guide, x, steps=3, lr=0.1)
        numbers = elbo(first.model, first.guide, x).value
        values = {name: value.clone() for name, value in first.params["params"].items()}
        if again == "by Pyro":
            svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.1}), Trace_ELBO())
            for _ in range(20):
                svi.step(x)
        else:
            pair = (model, guide) if again == "the pair" else (first.model, first.guide)
            second = fit(*pair, x, steps=20, lr=0.1)
            assert elbo(second.model, second.guide, x).value != numbers
        assert elbo(first.model, first.guide, x).value == numbers
        assert all(torch.equal(first.params["params"][name], values[name]) for name in values)

    @pytest.mark.parametrize("make", PAIRS_THAT_LEARN[:2])
    def test_a_call_of_a_fit_leaves_the_nets_alone(self, make):
        model, guide = make()
        first = fit(model, guide, self.x, steps=3, lr=0.1)
        second = fit(model, guide, self.x, steps=20, lr=0.1)
        now = elbo(model, guide, self.x).value
        assert elbo(second.model, second.guide, self.x).value == now
        assert elbo(first.model, first.guide, self.x).value != now
        assert elbo(model, guide, self.x).value == now

    def test_going_on_is_as_if_it_had_never_stopped(self):
        options = {"steps": 4, "lr": 0.001, "schedule": None, "optimiser": torch.optim.SGD, "engine": Eager}
        pairs = [a_vae(), a_vae()]
        first = fit(*pairs[0], self.x, **options)
        fit(*pairs[0], self.x, **options)  # trains the nets on
        by_fit = fit(first.model, first.guide, self.x, **options, seed=7)
        fit(*pairs[1], self.x, **options)
        in_place = fit(*pairs[1], self.x, **options, seed=7)
        assert torch.equal(by_fit.nelbo, in_place.nelbo)


class TestTwoInstances:
    """Outside all calls of this suite, in Pyro's own param store."""

    x = torch.linspace(-1.0, 1.0, 6)

    def trained(self, model, guide, x):
        svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.1}), Trace_ELBO())
        return [svi.step(x) for _ in range(5)]

    @pytest.mark.parametrize("second", ["made", "copied"])
    def test_of_a_guide_have_parameters_of_their_own(self, second):
        one = Global(plain_model, MeanField())
        one(self.x)
        other = Global(plain_model, MeanField()) if second == "made" else copy.deepcopy(one)
        other(self.x)
        assert one.lam is not other.lam
        before = other.lam.detach().clone()
        self.trained(plain_model, one, self.x)
        assert torch.equal(other.lam, before)
        assert not torch.equal(one.lam, before)

    @pytest.mark.parametrize("second", ["made", "copied"])
    def test_of_a_model_have_parameters_of_their_own(self, second):
        def made():
            return FactorAnalysis(torch.nn.Parameter(torch.ones(3, 2)))

        one, x = made(), torch.randn(6, 3)
        guide = Amortized(one, MeanField(), Linear())
        self.trained(one, guide, x)
        other = made() if second == "made" else copy.deepcopy(one)
        before = other.loading.detach().clone()
        other(x)
        assert torch.equal(other.loading, before)
        self.trained(one, guide, x)
        assert torch.equal(other.loading, before)

    @pytest.mark.parametrize("make", [lambda m: Global(m, MeanField()), AutoNormal])
    def test_a_fits_guide_is_not_the_users_outside_either(self, make):
        guide = make(plain_model)
        first = fit(plain_model, guide, self.x, steps=3, lr=0.1)
        numbers = elbo(plain_model, first.guide, self.x).value
        guide(self.x)
        first.guide(self.x)
        self.trained(plain_model, guide, self.x)
        assert elbo(plain_model, first.guide, self.x).value == numbers
