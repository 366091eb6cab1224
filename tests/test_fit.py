"""A fit reaches the best ELBO of its family, takes the same steps as Pyro's SVI, and leaves global state unchanged."""

from __future__ import annotations

import copy
import inspect
import math
import pickle
import random

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from problems import FIXED_PAIRS, MODELS, PAIRS, PAIRS_WITH_OPTIMUM, SLOW, SOURCES, build, demo, is_discrete, shake
from pyro import poutine
from pyro.infer import SVI, RenyiELBO, Trace_ELBO, TraceMeanField_ELBO
from pyro.infer.autoguide import AutoMultivariateNormal, AutoNormal
from torch.optim.lr_scheduler import ExponentialLR

from guides import Amortized, FullRank, Global, Linear, Local, LowRank, MeanField, Posterior, SemiAmortized
from inference import NonFiniteLossError, analytic_elbo, best_elbo, elbo, fit
from inference.engine import Eager
from inference.engine.local_rows import LocalRows
from inference.engine.minibatches import Batches
from inference.programs.isolation import isolated
from inference.programs.validation import check_pair
from models import (
    FactorAnalysis,
    GaussianMean,
    LinearRegression,
    LocalGaussian,
    LocalModel,
    ProbabilisticPCA,
    RegressionModel,
    datasets,
)

LEARNING = [m for m in MODELS if list(demo(m)[0].parameters()) and not is_discrete(m)]
TOLERANCE = 0.01
"""Nats per datum. No fit starts within it."""


class TestConvergence:
    @pytest.mark.parametrize(("model_class", "source", "family"), PAIRS_WITH_OPTIMUM)
    def test_reaches_the_best_of_the_family(self, model_class, source, family):
        model, x = demo(model_class)
        guide = build(model, source, family, x)
        best = best_elbo(model, guide.family, x).sum()
        assert best - analytic_elbo(model, guide.q(x), x).sum() > TOLERANCE * len(x)
        done = fit(model, guide, x, steps=1500, lr=0.03)
        reached = elbo(model, done.guide, x, draws=1000)
        assert best - reached.value < TOLERANCE * len(x) + 5 * reached.se
        assert best - reached.value > -5 * reached.se
        assert best - analytic_elbo(model, guide.q(x), x).sum() < TOLERANCE * len(x)

    @pytest.mark.parametrize(("model_class", "source", "family"), FIXED_PAIRS)
    def test_takes_the_steps_of_svi(self, model_class, source, family):
        """Pyro's SVI with Trace_ELBO and the same noise has the same losses and ends at the same λ."""
        model, x = demo(model_class)
        guides = [build(model, source, family, x) for _ in range(2)]
        if issubclass(source, Amortized):
            guides[1].load_state_dict(guides[0].state_dict())
        ours = fit(model, guides[0], x, steps=30, lr=0.02, schedule=None, seed=3)
        with isolated(3):
            check_pair(model, guides[1], (x,), {})
            svi = SVI(model, guides[1], pyro.optim.Adam({"lr": 0.02}), Trace_ELBO())
            theirs = torch.tensor([svi.step(x) for _ in range(30)], dtype=torch.float64)
        torch.testing.assert_close(ours.nelbo, theirs, rtol=1e-10, atol=0.0)
        for a, b in zip(guides[0].parameters(), guides[1].parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)
        assert theirs[-5:].mean() < theirs[:5].mean()


def test_mean_field_stops_at_its_own_optimum():
    model, x = LinearRegression.from_dataset(datasets.diabetes())
    model, x = model.double(), x.double()
    evidence = model.log_evidence(x)
    optimum = best_elbo(model, MeanField(), x)
    assert evidence - optimum > 3.0
    guide = Global(model, MeanField())
    fit(model, guide, x, steps=2000, lr=0.03)
    assert 0 <= optimum - analytic_elbo(model, guide.q(x), x) < TOLERANCE * len(x)
    full = Global(model, FullRank())
    fit(model, full, x, steps=2000, lr=0.03)
    assert evidence - analytic_elbo(model, full.q(x), x) < evidence - optimum - 1.0


@pytest.mark.slow
def test_digits_amortized_full_rank_reaches_the_evidence():
    """Probabilistic PCA at its maximum likelihood, whose posterior a linear encoder can represent."""
    model, x = ProbabilisticPCA.from_dataset(datasets.digits())
    guide = Amortized(model, FullRank(), Linear())
    evidence = model.log_evidence(x).sum()
    guide.setup(x)
    assert evidence - analytic_elbo(model, guide.q(x), x).sum() > 1.0 * len(x)
    fit(model, guide, x, steps=1500, lr=0.03)
    assert 0 <= evidence - analytic_elbo(model, guide.q(x), x).sum() < TOLERANCE * len(x)


def test_learns_the_model_too():
    """Learned by SVI, probabilistic PCA reaches the evidence of the maximum-likelihood model."""
    _, x = demo(ProbabilisticPCA)
    best = ProbabilisticPCA.maximum_likelihood(x, 2)
    torch.manual_seed(1)
    model = ProbabilisticPCA(
        torch.nn.Parameter(torch.randn(6, 2).double()),
        torch.nn.Parameter(x.mean(0)),
        torch.nn.Parameter(torch.ones(()).double()),
    )
    evidence = best.log_evidence(x).sum()
    assert evidence - model.log_evidence(x).sum() > 1.0 * len(x)
    fit(model, Amortized(model, FullRank(), Linear()), x, steps=3000, lr=0.03)
    assert 0 <= evidence - model.log_evidence(x).sum() < 0.05 * len(x)


@pytest.mark.parametrize("model_class", LEARNING)
def test_what_is_frozen_stays_as_it_is(model_class):
    """Holds for every parameter of a model, also for those in Pyro's param store. The guide still learns."""
    model, x = demo(model_class)
    model.requires_grad_(False)
    before = {name: value.clone() for name, value in model.named_parameters()}
    guide = build(model, Local if issubclass(model_class, LocalModel) else Global, MeanField, x)
    start = torch.cat([p.detach().flatten() for p in guide.parameters()])
    fit(model, guide, x, steps=3)
    elbo(model, guide, x, draws=2)
    for name, value in model.named_parameters():
        assert not value.requires_grad
        assert torch.equal(value, before[name])
    assert not torch.equal(torch.cat([p.detach().flatten() for p in guide.parameters()]), start)


class TestMinibatches:
    @pytest.mark.parametrize(("model_class", "source", "family"), PAIRS)
    def test_batches_average_to_the_whole(self, model_class, source, family):
        """With common noise, the mean over all batches of one epoch is the full-data estimate, exactly."""
        model, x = demo(model_class)
        guide = build(model, source, family, x)
        shake(guide, 0.1, seed=0)
        with torch.no_grad():
            h = poutine.trace(guide).get_trace(x).nodes["h"]["value"]

            def estimate(index):
                arguments = (x,) if index is None else (x[index], index, len(x))
                value = h if index is None or not isinstance(model, LocalModel) else h[index]
                q = poutine.trace(poutine.condition(guide, {"h": value})).get_trace(*arguments)
                p = poutine.trace(poutine.condition(model, {"h": value})).get_trace(*arguments)
                return p.log_prob_sum() - q.log_prob_sum()

            parts = torch.stack([estimate(index) for index in torch.randperm(len(x)).reshape(4, -1)])
            torch.testing.assert_close(parts.mean(), estimate(None), atol=1e-10, rtol=0.0)
        assert parts.std() > 1e-3

    def test_epochs_visit_every_row_once(self):
        x = torch.arange(10.0)
        stream = Batches((x, 2 * x), 4)
        for epoch in range(3):
            taken = [next(stream) for _ in range(3)]
            assert [len(b.args[0]) for b in taken] == [4, 4, 2]
            assert torch.equal(torch.cat([b.args[0] for b in taken]).sort().values, x)
            assert all(b.epoch == epoch and b.kwargs["size"] == 10 for b in taken)
            assert all(torch.equal(b.args[1], 2 * b.args[0]) for b in taken)

    @pytest.mark.parametrize(
        "source", [pytest.param(s, marks=SLOW if issubclass(s, SemiAmortized) else ()) for s in SOURCES if s.local]
    )
    @pytest.mark.parametrize("family", [MeanField, LowRank])
    def test_a_minibatch_fit_reaches_the_optimum(self, source, family):
        model, x = demo(FactorAnalysis)
        guide = build(model, source, family, x)
        start = analytic_elbo(model, guide.q(x), x).sum()
        # A refined guide also ascends inside each step: a step costs ten times as much, and a fifth as many are needed.
        steps = 600 if source is SemiAmortized else 3000
        fit(model, guide, x, steps=steps, lr=0.03, batch_size=25)
        best = best_elbo(model, guide.family.demo(2) if family is MeanField else FullRank(), x).sum()
        assert best - start > 0.05 * len(x)
        assert best - analytic_elbo(model, guide.q(x), x).sum() < 0.05 * len(x)

    @pytest.mark.parametrize(
        "make",
        [torch.optim.Adam, lambda p, lr: torch.optim.SGD(p, lr, momentum=0.9), torch.optim.RMSprop, torch.optim.Adagrad],
    )
    def test_rows_are_optimised_as_if_each_were_alone(self, make):
        """The minibatches of one epoch move a table exactly as one step on all rows does."""
        target = torch.randn(7, 3, generator=torch.Generator().manual_seed(1))
        dense = torch.nn.Parameter(torch.zeros(7, 3))
        whole = make([dense], lr=0.1)
        table = torch.nn.Parameter(torch.zeros(7, 3))
        rows = LocalRows()
        descent = None
        for epoch in range(5):
            whole.zero_grad()
            ((dense - target) ** 4).sum().backward()
            whole.step()
            for index in torch.randperm(7, generator=torch.Generator().manual_seed(epoch)).split(3):
                with rows:
                    from guides import rows as look_up

                    ((look_up(table, index) - target[index]) ** 4).sum().backward()
                descent = descent or make(list(rows.leaves.values()), lr=0.1)
                rows.load(descent, epoch)
                descent.step()
                rows.store(descent)
                descent.zero_grad()
            torch.testing.assert_close(table, dense)
        assert (dense - target).abs().max() > 1e-3

    def test_optimisers_whose_state_is_not_per_row_are_refused(self):
        model, x = demo(LocalGaussian)
        guide = build(model, Local, MeanField, x)
        before = guide.table.detach().clone()
        with pytest.raises(TypeError, match="Adafactor keeps .* batch_size=None"):
            fit(model, guide, x, steps=3, batch_size=10, optimiser=torch.optim.Adafactor)
        assert torch.equal(guide.table, before)

    @pytest.mark.parametrize("batch_size", [25, 30])
    def test_an_epoch_visits_every_row(self, batch_size):
        model, x = demo(LocalGaussian)
        guide = build(model, Local, MeanField, x)
        before = guide.table.detach().clone()
        fit(model, guide, x, steps=4, lr=0.1, batch_size=batch_size, schedule=None)
        moved = (guide.table - before).abs().max(-1).values
        torch.testing.assert_close(moved, torch.full_like(moved, 0.1), rtol=1e-6, atol=0.0)

    @pytest.mark.parametrize("model_class", [GaussianMean, LinearRegression])
    def test_a_global_guide(self, model_class):
        model, x = demo(model_class)
        guide = build(model, Global, FullRank, x)
        evidence = model.log_evidence(x)
        assert evidence - analytic_elbo(model, guide.q(x), x) > 0.1 * len(x)
        fit(model, guide, x, steps=3000, lr=0.02, batch_size=10)
        assert evidence - analytic_elbo(model, guide.q(x), x) < 0.01 * len(x)

    def test_a_model_with_keywords_is_scaled_right(self):
        base, x = demo(LocalGaussian)

        def model(x, **options):
            return base(x, **options)

        guide = Amortized(model, FullRank(), Linear())
        fit(model, guide, x, steps=2000, lr=0.03, batch_size=20)
        torch.testing.assert_close(guide.q(x).variance, base.posterior(x).variance, rtol=0.1, atol=0.0)

    def test_only_the_rows_in_the_batch_change(self):
        model, x = demo(LocalGaussian)
        guide = build(model, Local, MeanField, x)
        before = guide.table.detach().clone()
        fit(model, guide, x, steps=1, batch_size=10)
        assert (guide.table != before).any(-1).sum() == 10


def plain_model(x):
    h = pyro.sample("h", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(h, 1.0), obs=x)


def plain_guide(x):
    loc = pyro.param("loc", torch.tensor(0.0))
    scale = pyro.param("scale", torch.tensor(1.0), constraint=dist.constraints.positive)
    pyro.sample("h", dist.Normal(loc, scale))


class TestAnyPyroProgram:
    x = torch.tensor([1.0, 2.0, 3.0])
    evidence = -0.5 * (3 * math.log(2 * math.pi) + math.log(4) + 14 - 36 / 4)

    def test_plain_functions(self):
        done = fit(plain_model, plain_guide, self.x, steps=1500, lr=0.05)
        assert not list(pyro.get_param_store())
        assert elbo(plain_model, plain_guide, self.x).value < self.evidence - 0.5
        reached = elbo(done.model, done.guide, self.x)
        assert abs(reached.value - self.evidence) < 0.01 + 5 * reached.se
        assert abs(done.params["params"]["loc"] - 1.5) < 0.1

    @pytest.mark.parametrize("autoguide", [AutoNormal, AutoMultivariateNormal])
    def test_autoguides(self, autoguide):
        done = fit(plain_model, autoguide(plain_model), self.x, steps=1500, lr=0.05)
        reached = elbo(done.model, done.guide, self.x)
        assert abs(reached.value - self.evidence) < 0.01 + 5 * reached.se

    @pytest.mark.parametrize(
        "objective", [TraceMeanField_ELBO(), RenyiELBO(alpha=0.5, num_particles=3), Trace_ELBO(num_particles=3)]
    )
    def test_objectives_of_pyro(self, objective):
        done = fit(plain_model, plain_guide, self.x, steps=1500, lr=0.05, objective=objective)
        assert abs(elbo(done.model, done.guide, self.x).value - self.evidence) < 0.05

    def test_modules_registered_by_pyro_module(self):
        net = torch.nn.Linear(1, 2)

        def guide(x):
            loc, scale = pyro.module("net", net)(x.mean().view(1))
            pyro.sample("h", dist.Normal(loc, scale.exp()))

        before = net.bias.detach().clone()
        done = fit(plain_model, guide, self.x, steps=1000, lr=0.05)
        assert (net.bias != before).any()
        assert elbo(done.model, done.guide, self.x).value > self.evidence - 0.1

    def test_several_arguments(self):
        def model(covariates, y):
            slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
            with pyro.plate("data", len(y)):
                pyro.sample("y", dist.Normal(slope * covariates, 1.0), obs=y)

        covariates = torch.linspace(-1, 1, 20)
        done = fit(model, Global(model, MeanField()), (covariates, 2 * covariates), steps=500, lr=0.05)
        assert elbo(done.model, done.guide, (covariates, 2 * covariates)).se < 0.1

    def test_a_learned_pyro_param_in_the_model(self):
        def model(x):
            shift = pyro.param("shift", torch.tensor(0.0))
            with pyro.plate("data", len(x)):
                h = pyro.sample("h", dist.Normal(shift, 1.0))
                pyro.sample("x", dist.Normal(h, 1.0), obs=x)

        done = fit(model, AutoNormal(model), self.x, steps=1000, lr=0.05)
        assert abs(done.params["params"]["shift"] - 2.0) < 0.1
        assert elbo(done.model, done.guide, self.x).value > elbo(model, done.guide, self.x).value + 1

    def test_goes_on_from_a_fit(self):
        first = fit(plain_model, plain_guide, self.x, steps=300, lr=0.05)
        before = {name: value.clone() for name, value in first.params["params"].items()}
        second = fit(first.model, first.guide, self.x, steps=300, lr=0.01)
        assert second.nelbo[:50].mean() < first.nelbo[:50].mean() - 0.5
        assert all(torch.equal(first.params["params"][name], before[name]) for name in before)
        assert not any(torch.equal(second.params["params"][name], before[name]) for name in before)

    def test_modules_are_trained_in_place_and_come_back_as_copies(self):
        model, x = demo(LocalGaussian)
        guide = build(model, Local, MeanField, x)
        done = fit(model, guide, x, steps=3)
        assert done.model is model  # has nothing to learn
        assert torch.equal(done.guide.table, guide.table)
        assert done.guide.table is not guide.table
        learned = FactorAnalysis(torch.nn.Parameter(torch.randn(2, 1).double()))
        guide = Amortized(learned, MeanField(), Linear())
        done = fit(learned, guide, x, steps=3)
        assert torch.equal(done.model.loading, learned.loading)
        assert done.guide.model is done.model
        assert elbo(learned, done.guide, x).value == elbo(done.model, guide, x).value

    def test_shapes_that_pyro_refuses_are_refused(self):
        def without_plate(x):
            h = pyro.sample("h", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(h, 1.0), obs=x)

        with pytest.raises(ValueError, match="invalid log_prob shape"):
            fit(without_plate, plain_guide, self.x, steps=3)

    def test_a_second_fit_starts_afresh(self):
        first, second = (fit(plain_model, plain_guide, self.x, steps=200, lr=0.05, engine=Eager) for _ in range(2))
        torch.testing.assert_close(first.nelbo, second.nelbo, rtol=0.0, atol=0.0)


class TestOptions:
    def test_seeds(self):
        model, x = demo(GaussianMean)
        runs = [fit(model, Global(model, MeanField()), x, steps=5, seed=s).nelbo for s in (1, 1, 2)]
        assert torch.equal(runs[0], runs[1])
        assert not torch.equal(runs[0], runs[2])

    def test_schedule(self):
        model, x = demo(GaussianMean)
        moved = []
        for schedule in (lambda o, steps: ExponentialLR(o, 0.1), None):
            guide = build(model, Global, MeanField, x)
            fit(model, guide, x, steps=50, lr=0.05, schedule=schedule)
            moved.append(guide.lam.abs().max())
        assert moved[0] < moved[1]

    def test_loss_history(self):
        model, x = demo(GaussianMean)
        done = fit(model, Global(model, MeanField()), x, steps=7, seed=4)
        assert done.nelbo.shape == (7,)
        assert (done.steps, done.seed) == (7, 4)
        assert done.seconds > 0

    def test_progress_goes_to_stderr_and_only_on_demand(self, capsys):
        model, x = demo(GaussianMean)
        fit(model, Global(model, MeanField()), x, steps=3)
        assert capsys.readouterr() == ("", "")
        fit(model, Global(model, MeanField()), x, steps=3, progress=True)
        out, err = capsys.readouterr()
        assert out == ""
        assert "3/3" in err


def global_state():
    return (
        torch.get_rng_state().tolist(),
        random.getstate(),
        np.random.get_state()[1].tolist(),
        torch.get_default_dtype(),
        pyro.distributions.is_validation_enabled(),
        pyro.infer.util.is_validation_enabled(),
        torch.distributions.Distribution._validate_args,
        {name: value.tolist() for name, value in pyro.get_param_store().items()},
    )


class TestNothingGlobalChanges:
    def start(self):
        pyro.param("loc", torch.tensor(7.0))
        torch.distributions.Distribution.set_default_validate_args(False)
        return global_state()

    @pytest.fixture(autouse=True)
    def _restore(self):
        yield
        torch.distributions.Distribution.set_default_validate_args(True)

    def meddle(self, then):
        def model(x):
            torch.set_default_dtype(torch.float64)
            pyro.enable_validation(True)
            np.random.rand()
            random.random()
            plain_model(x)
            if then is not None and next(self.calls) == 5:
                raise then

        self.calls = iter(range(100))
        return model

    def test_after_success(self):
        before = self.start()
        fit(self.meddle(None), plain_guide, torch.ones(3), steps=3)
        with pytest.warns(UserWarning, match="called once for each draw"):  # validation, which it turns on, cannot be mapped
            elbo(self.meddle(None), plain_guide, torch.ones(3))
        assert global_state() == before

    @pytest.mark.parametrize("error", [RuntimeError("stop"), KeyboardInterrupt()])
    def test_after_an_error_and_after_ctrl_c(self, error):
        before = self.start()
        with pytest.raises(type(error)):
            fit(self.meddle(error), plain_guide, torch.ones(3), steps=50)
        assert global_state() == before

    def test_after_bad_input(self):
        before = self.start()
        with pytest.raises(ValueError, match="row 1"):
            fit(plain_model, plain_guide, torch.tensor([1.0, math.nan]), steps=3)
        assert global_state() == before


class TestNonFiniteLoss:
    def test_goes_through_a_pickle(self):
        error = pickle.loads(pickle.dumps(NonFiniteLossError(3, "h", "it is nan")))
        assert (error.step, error.site) == (3, "h")
        assert "step 3: it is nan" in str(error)

    def test_a_failed_factorisation_is_one(self):
        model, x = demo(LinearRegression)
        with pytest.raises(NonFiniteLossError, match="step"):
            fit(model, Global(model, LowRank(2)), x, steps=50, lr=1e6)

    def test_stops_at_the_step_and_names_the_site(self):
        calls = iter(range(1000))

        def model(x):
            h = pyro.sample("h", dist.Normal(0.0, 1.0))
            noise = 1.0 if next(calls) < 8 else math.nan
            pyro.sample("fine", dist.Normal(h, 1.0), obs=x)
            pyro.sample("broken", dist.Normal(h, noise), obs=x)

        with pytest.raises(NonFiniteLossError, match="step 6.*'broken' in the model is nan") as caught:
            fit(model, AutoNormal(model), torch.tensor(1.0), steps=20)
        assert (caught.value.step, caught.value.site) == (6, "broken")

    def test_leaves_the_guide_as_it_was_before_the_step(self):
        model, x = demo(GaussianMean)
        guide = build(model, Global, MeanField, x)
        calls = iter(range(1000))

        class Breaking(Trace_ELBO):
            def loss_and_grads(self, *args, **kwargs):
                loss = super().loss_and_grads(*args, **kwargs)
                self.lam = guide.lam.detach().clone()
                return loss if next(calls) < 3 else math.inf

        objective = Breaking()
        with pytest.raises(NonFiniteLossError, match="step 3: the loss is inf"):
            fit(model, guide, x, steps=20, objective=objective)
        assert torch.equal(guide.lam, objective.lam)

    def test_a_gradient_that_is_not_finite_stops_it_too(self):
        def guide(x):
            loc = pyro.param("loc", torch.tensor(0.0))
            pyro.sample("h", dist.Normal((loc.abs() + 0.0).sqrt(), 1.0))

        with pytest.raises(NonFiniteLossError, match="step 0: the gradient of the loss is not finite"):
            fit(plain_model, guide, torch.ones(3), steps=5)


class TestSurroundings:
    def test_gradients_are_the_users(self):
        model, x = demo(GaussianMean)
        guide = build(model, Global, MeanField, x)
        guide.lam.grad = torch.ones_like(guide.lam)
        fit(model, guide, x, steps=3)
        assert torch.equal(guide.lam.grad, torch.ones_like(guide.lam))

    def test_under_no_grad(self):
        model, x = demo(GaussianMean)
        guide = build(model, Global, MeanField, x)
        before = guide.lam.detach().clone()
        with torch.no_grad():
            fit(model, guide, x, steps=3)
        assert not torch.equal(guide.lam, before)

    def test_simulation_leaves_the_param_store(self):
        one, five = (FactorAnalysis(torch.ones(3, 1), 0.0, torch.nn.Parameter(v * torch.ones(3))) for v in (1.0, 5.0))
        one.simulate(2, seed=0)
        five.simulate(2, seed=0)
        torch.testing.assert_close(five.noise_scale, 5 * torch.ones(3))
        assert not list(pyro.get_param_store())

    @pytest.mark.parametrize("model_class", [GaussianMean, LocalGaussian])
    def test_any_scale_can_be_learned(self, model_class):
        model = model_class(2, noise_scale=torch.nn.Parameter(torch.ones(2)))
        assert [name for name, _ in model.named_parameters()] == ["noise_scale_unconstrained"]

    @pytest.mark.parametrize("copied", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))])
    def test_copies_behave_alike(self, copied):
        model, x = demo(LocalGaussian)
        guide = build(model, Local, MeanField, x)
        model, twin = copied((model, guide))
        assert [n for n, s in poutine.trace(twin).get_trace(x).nodes.items() if s["type"] == "sample"] == ["data", "h"]
        assert torch.equal(fit(model, twin, x, steps=2).nelbo, fit(guide.model, guide, x, steps=2).nelbo)

    def test_an_encoder_module_is_copied(self):
        model, x = demo(LocalGaussian)
        net = torch.nn.Sequential(torch.nn.BatchNorm1d(2), torch.nn.Linear(2, 4))
        before = net[1].weight.detach().clone()
        guide = Amortized(model, MeanField(), net)
        fit(model, guide, x, steps=3)
        assert torch.equal(net[1].weight, before)
        assert not torch.equal(guide.encoder[1].weight, before)


def takes_a_noise_scale_alone(model_class):
    """Whether a model is made from one argument and the noise's standard deviation."""
    parameters = inspect.signature(model_class).parameters
    return "noise_scale" in parameters and "latents" not in parameters


class TestBadInput:
    model, x = LocalGaussian.demo()

    def refused(self, error, match, **changes):
        options = {"model": self.model, "guide": Local(self.model, MeanField()), "x": self.x, "steps": 3, **changes}
        ran = []
        if isinstance(options["guide"], Local):
            options["guide"].register_forward_pre_hook(lambda *_: ran.append(True))
        with pytest.raises(error, match=match):
            fit(options.pop("model"), options.pop("guide"), options.pop("x"), **options)
        return ran

    def test_data(self):
        bad = self.x.clone()
        bad[5, 1] = math.nan
        bad[9] = math.inf
        assert not self.refused(ValueError, "row 5 of x holds nan, which is not finite \\(2 such rows", x=bad)
        assert not self.refused(ValueError, "shape \\(100, 3\\), but \\(N, 2\\)", x=torch.zeros(100, 3))
        assert not self.refused(TypeError, "int64, but real numbers", x=torch.zeros(100, 2, dtype=torch.int64))
        assert not self.refused(ValueError, "x is empty", x=torch.zeros(0, 2))
        assert not self.refused(TypeError, "float64, the model torch.float32", x=self.x.double())
        assert not self.refused(TypeError, "x must be a tensor, an array or a list", x={"x": self.x})

    @pytest.mark.parametrize("size", [0, -1, 101])
    def test_batch_size(self, size):
        message = "between 1 and the 100 rows of the data, but is 101" if size > 0 else "batch_size must be at least 1"
        assert not self.refused(ValueError, message, batch_size=size)
        assert not self.refused(TypeError, "batch_size must be an integer", batch_size=2.5)

    def test_steps_and_rate(self):
        assert not self.refused(ValueError, "steps must be at least 1, but is 0", steps=0)
        assert not self.refused(ValueError, "steps must be at least 1, but is -3", steps=-3)
        assert not self.refused(TypeError, "steps must be an integer, but is 2.5", steps=2.5)
        assert not self.refused(ValueError, "lr must be positive", lr=0.0)
        assert not self.refused(TypeError, "lr must be a number", lr="0.1")

    def test_objectives_and_optimisers(self):
        assert not self.refused(TypeError, "pass an instance, Trace_ELBO\\(\\)", objective=Trace_ELBO)
        self.refused(TypeError, "LBFGS evaluates the loss several times", optimiser=torch.optim.LBFGS)

    def test_minibatches_of_a_model_without_index(self):
        with pytest.raises(ValueError, match="a model that takes index and size.*this one takes \\['x'\\]"):
            fit(plain_model, plain_guide, torch.ones(9), steps=3, batch_size=3)

    def test_a_guide_built_for_other_data(self):
        guide = Local(self.model, MeanField())
        guide.setup(self.x)
        with pytest.raises(ValueError, match="for each of 100 data, but x has 50"):
            fit(self.model, guide, self.x[:50], steps=3)
        with pytest.raises(ValueError, match="for each of 100 data, but the data have 200"):
            fit(self.model, guide, self.x.repeat(2, 1), steps=3, batch_size=10)

    def test_a_guide_built_for_another_model(self):
        other = FactorAnalysis(torch.randn(2, 2))
        with pytest.raises(ValueError, match="built for another model \\(FactorAnalysis\\)"):
            fit(self.model, Local(other, MeanField()), self.x, steps=3)

    def test_site_names_that_do_not_match(self):
        def guide(x):
            pyro.sample("z", dist.Normal(pyro.param("loc", torch.tensor(0.0)), 1.0))

        with pytest.raises(ValueError, match="does not draw the latent 'h'.*draws \\['z'\\].*are \\['h'\\]"):
            fit(plain_model, guide, torch.ones(3), steps=3)

        def surplus(x):
            plain_guide(x)
            guide(x)

        with pytest.raises(ValueError, match="draws 'z', which is no latent"):
            fit(plain_model, surplus, torch.ones(3), steps=3)

    def test_nothing_to_learn(self):
        with pytest.raises(ValueError, match="nothing to fit"):
            fit(self.model, Posterior(self.model), self.x, steps=3)

    @pytest.mark.parametrize("model_class", [m for m in MODELS if takes_a_noise_scale_alone(m)])
    def test_scales_must_be_positive(self, model_class):
        first = torch.ones(4, 2) if issubclass(model_class, (RegressionModel, FactorAnalysis)) else 2
        for value in (0.0, -1.0):
            with pytest.raises(ValueError, match="noise_scale must be positive, but holds"):
                model_class(first, noise_scale=value)
        with pytest.raises(ValueError, match="noise_scale must be finite"):
            model_class(first, noise_scale=math.nan)
        with pytest.raises(TypeError, match="noise_scale must hold real numbers, but is torch.int64"):
            model_class(first, noise_scale=torch.tensor(1))

    def test_index_without_size(self):
        with pytest.raises(ValueError, match="index is given without size"):
            self.model(self.x[:3], torch.arange(3))
        with pytest.raises(ValueError, match="x has 100 rows where 3 are expected"):
            self.model(self.x, torch.arange(3), 100)


def test_global_guide_over_a_local_model():
    """One packed vector for all h_i has the same optimum: its family contains the product of their posteriors."""
    model, x = demo(LocalGaussian)
    x = x[:5]
    done = fit(model, Global(model, MeanField()), x, steps=1500, lr=0.03)
    reached = elbo(model, done.guide, x, draws=1000)
    assert abs(model.log_evidence(x).sum() - reached.value) < TOLERANCE * len(x) + 5 * reached.se
    guide = Global(model, MeanField())
    with pytest.raises(ValueError, match="latents inside the plate 'data'.*Local"):
        fit(model, guide, x, steps=3, batch_size=2)
    fit(model, guide, x, steps=3)
    with pytest.raises(ValueError, match="built for 5 data, but there are 4"):
        fit(model, guide, x[:4], steps=3)
