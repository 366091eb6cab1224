"""Nothing global is changed: by importing, and by every public function."""

from __future__ import annotations

import copy
import inspect
import threading

import pyro
import pyro.distributions as dist
import pytest
import torch
from globals import changes, changes_by_import, snapshot, unchanged
from pyro.infer import SVI, Trace_ELBO
from torch.distributions import Distribution

import inference
from guides import Linear, Local, MeanField, Posterior
from guides.sources import Amortized
from inference import diagnostics
from inference.objectives import TraceELBO
from models import FactorAnalysis, LinearVAE

NOT_PROGRAMS = {"by_name", "change", "error_bounds", "moment_errors", "psis", "scalars", "cosine", "quantities"}
"""Functions of numbers alone."""


def test_the_snapshot_sees_a_change():
    before = snapshot()
    torch.rand(1)
    assert set(changes(before, snapshot())) == {"torch's generator"}


def test_importing_changes_nothing():
    assert changes_by_import("models", "guides", "inference") == {}


class Case:
    """A pair, its data and a fit of it."""

    def __init__(self):
        self.model, x = FactorAnalysis.demo()
        self.x = x[:6]
        self.guide = Local(self.model, MeanField())
        self.done = inference.fit(self.model, self.guide, self.x, steps=3)
        self.h = {"h": self.model.simulate(6, seed=0)[0].unsqueeze(0).expand(40, -1, -1)}
        self.samples = torch.randn(2, 40, 2, generator=torch.Generator().manual_seed(0))
        self.weighted = diagnostics.importance(self.model, self.guide, self.x, draws=200)


def not_converged(case):
    with pytest.raises(inference.NotConvergedError):
        inference.reference(case.model, case.x, chains=2, draws=10, warmup=10)


CALLS = {
    "ais": lambda c: inference.ais(c.model, c.guide, c.x, temperatures=3, chains=2, pilot=1),
    "ais_reverse": lambda c: inference.ais_reverse(
        c.model, c.guide, c.x, {"h": c.h["h"][0]}, temperatures=3, chains=2, pilot=1
    ),
    "analytic_elbo": lambda c: inference.analytic_elbo(c.model, c.guide.q(c.x), c.x),
    "best_elbo": lambda c: inference.best_elbo(c.model, MeanField(), c.x),
    "bidirectional": lambda c: inference.bidirectional(c.model, 3, temperatures=3, chains=2, pilot=1),
    "compare": lambda c: inference.compare(c.model, {"g": lambda m: Local(m, MeanField())}, c.x, steps=2, seeds=1, draws=10),
    "elbo": lambda c: inference.elbo(c.model, c.guide, c.x, draws=10),
    "evidence_minus_kl": lambda c: inference.evidence_minus_kl(c.model, c.guide.q(c.x), c.x),
    "fit": lambda c: inference.fit(c.model, c.guide, c.x, steps=3, batch_size=3),
    "fit_many": lambda c: inference.fit_many([(c.model, c.guide)], c.x, seeds=[1], steps=6),
    "fit_unseen": lambda c: inference.fit_unseen(
        Amortized(c.model, MeanField(), Linear()), c.x, ascent=inference.Ascent(steps=3)
    ),
    "gaps": lambda c: inference.gaps(c.model, c.guide, c.x, draws=10, evidence_draws=50, ascent=inference.Ascent(steps=3)),
    "gradient_variance": lambda c: inference.gradient_variance(c.model, c.guide, {"t": TraceELBO()}, c.x, draws=4),
    "iwae": lambda c: inference.iwae(c.model, c.guide, c.x, draws=50),
    "kl": lambda c: inference.kl(c.guide.q(c.x), c.guide.q(c.x)),
    "reference": not_converged,
    "to_arviz": lambda c: inference.to_arviz(c.done, c.x, draws=5),
    "trust": lambda c: inference.trust(c.done, c.x, draws=1000),
    "active_units": lambda c: diagnostics.active_units(c.guide, c.x),
    "c2st": lambda c: diagnostics.c2st(*c.samples),
    "calibration": lambda c: diagnostics.calibration(
        c.model, lambda x: Posterior(c.model).q(x), simulations=4, draws=3, rows=2
    ),
    "drift": lambda c: diagnostics.drift(c.model, c.x, c.weighted, chains=100, moves=2, leapfrog=1),
    "importance": lambda c: diagnostics.importance(c.model, c.guide, c.x, draws=100),
    "kernel_stein_discrepancy": lambda c: diagnostics.kernel_stein_discrepancy(c.model, c.x, c.h, bootstrap=3),
    "loo": lambda c: diagnostics.loo(c.model, c.guide, c.x, draws=50),
    "mmd": lambda c: diagnostics.mmd(*c.samples, permutations=3),
    "predictive_coverage": lambda c: diagnostics.predictive_coverage(c.model, c.guide, c.x, draws=10),
    "stein_check": lambda c: diagnostics.stein_check(c.model, c.x, c.h),
}


def functions():
    for module in (inference, diagnostics):
        yield from (name for name in module.__all__ if inspect.isfunction(getattr(module, name)))


def test_every_function_is_called():
    assert set(CALLS) == set(functions()) - NOT_PROGRAMS


@pytest.fixture(scope="module")
def case():
    return Case()


@pytest.mark.parametrize("name", CALLS)
def test_a_call_changes_nothing(case, name, recwarn):
    case = copy.copy(case)
    case.x = case.x.clone()
    pyro.param("mine", torch.tensor(3.0))
    validates = Distribution._validate_args
    Distribution.set_default_validate_args(False)  # not what Pyro's own flag says
    for p in case.guide.parameters():
        p.grad = torch.ones_like(p)
    try:
        with unchanged(case.model, case.guide, case.x):
            CALLS[name](case)
    finally:
        Distribution.set_default_validate_args(validates)
        for p in case.guide.parameters():
            p.grad = None


class TestThreads:
    def test_fits_from_several_threads_are_those_of_one(self):
        def one(seed):
            model, x = FactorAnalysis.demo()
            found[seed] = inference.fit(model, Local(model, MeanField()), x[:6], steps=5, seed=seed).nelbo

        found = {}
        for seed in range(4):
            one(seed)
        expected, found = found, {}
        threads = [threading.Thread(target=one, args=(seed,)) for seed in range(4)]
        with unchanged():
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        assert all(torch.equal(found[seed], expected[seed]) for seed in range(4))


class TestInferenceMode:
    def test_a_fit_learns_as_outside(self):
        model, x = FactorAnalysis.demo()
        expected = inference.fit(model, Local(model, MeanField()), x[:6], steps=5)
        with torch.inference_mode():
            model, x = FactorAnalysis.demo()
            done = inference.fit(model, Local(model, MeanField()), x[:6], steps=5)
            assert torch.is_inference_mode_enabled()
        assert torch.equal(done.nelbo, expected.nelbo)
        assert len(set(done.nelbo.tolist())) == 5

    def test_what_is_learned_may_have_been_made_inside(self):
        def built():
            torch.manual_seed(0)
            model, x = LinearVAE.demo()
            return model, Local(model, MeanField()), x[:6]

        expected = inference.fit(*built(), steps=5)
        with torch.inference_mode():
            done = inference.fit(*built(), steps=5)
        assert torch.equal(done.nelbo, expected.nelbo)


class TestTheUsersParameters:
    """Values of `pyro.param` outside all calls: a fit starts from them, and leaves them alone."""

    @staticmethod
    def pair():
        def model(x):
            h = pyro.sample("h", dist.Normal(0.0, 1.0))
            with pyro.plate("data", len(x)):
                pyro.sample("x", dist.Normal(h, 1.0), obs=x)

        def guide(x):
            pyro.sample("h", dist.Normal(pyro.param("m", torch.tensor(0.0)), 0.5))

        return model, guide

    def test_a_fit_goes_on_where_svi_ended(self):
        model, guide = self.pair()
        x = torch.tensor([1.0, 2.0])
        svi = SVI(model, guide, pyro.optim.SGD({"lr": 0.01}), Trace_ELBO())
        pyro.set_rng_seed(3)
        whole = [svi.step(x) for _ in range(6)]
        pyro.clear_param_store()
        pyro.set_rng_seed(3)
        for _ in range(3):
            svi.step(x)
        ended = pyro.param("m").item()
        with unchanged():
            done = inference.fit(model, guide, x, steps=3, lr=0.01, optimiser=torch.optim.SGD, schedule=None)
        assert whole[3] != done.nelbo[0]  # other noise
        assert done.params["params"]["m"].item() != ended != 0.0
        assert inference.fit(model, guide, x, steps=1, lr=1e-9).params["params"]["m"].item() == pytest.approx(ended, abs=1e-6)

    def test_an_estimate_is_of_the_users_guide(self):
        model, guide = self.pair()
        x = torch.tensor([1.0, 2.0])
        start = inference.elbo(model, guide, x, draws=1000)
        pyro.param("m", torch.tensor(-3.0))
        assert inference.elbo(model, guide, x, draws=1000).value < start.value - 5

    def test_another_programs_parameters_are_not_among_the_results(self):
        model, guide = self.pair()
        pyro.param("another", torch.tensor(1.0))
        done = inference.fit(model, guide, torch.tensor([1.0]), steps=1)
        assert set(done.params["params"]) == set(done.params["constraints"]) == {"m"}
