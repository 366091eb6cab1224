"""A fit ends when its rule says so, with the right reason, and at the distance from the optimum that it claims."""

from __future__ import annotations

import dataclasses
import inspect
import math
import pickle
import time
from functools import cache
from types import SimpleNamespace
from typing import get_type_hints

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from problems import GAUSSIAN, TRACTABLE, build, demo, is_discrete, shake
from pyro.infer.autoguide import AutoDelta, AutoMultivariateNormal, AutoNormal
from scipy.signal import lfilter
from sklearn.datasets import load_breast_cancer

from guides import Amortized, Bernoulli, Delta, Flow, FullRank, Global, Linear, Local, MeanField
from inference import DivergedError, NonFiniteLossError, analytic_elbo, best_elbo, fit, fit_many, kl, stopping
from inference.engine import Eager
from inference.engine.minibatches import Batch
from inference.fitting.default_objective import lowest_variance_objective
from inference.fitting.fisher import data_count, score_draws
from inference.objectives import StickingTheLanding, TraceELBO
from inference.optimisers import DoG, DoWG
from inference.stopping import Converged, MaxSeconds, MaxSteps, Plateau, Rule, When
from models import (
    BinaryVAE,
    FactorAnalysis,
    GaussianMean,
    LinearRegression,
    LocalGaussian,
    LocalModel,
    LogisticRegression,
    datasets,
)

RULES = [r for r in map(stopping.__dict__.get, stopping.__all__) if inspect.isclass(r) and issubclass(r, Rule)]
CONCRETE = [rule for rule in RULES if not inspect.isabstract(rule)]
START = (3.0, -3.0, 1.0)
WITHIN = 0.05
"""Nats: the largest KL to the family's best at the end of a fit."""


def far(model, guide, x):
    """The gap to the best ELBO of the family, in nats."""
    with torch.no_grad():
        return float((best_elbo(model, guide.family, x) - analytic_elbo(model, guide.q(x), x)).sum())


class Noisy:
    """A `Running` without Pyro: stochastic gradient steps on ½ λᵀ H λ, whose Fisher information is H."""

    def __init__(self, start, curvature, *, noise, rate, seed=0, bias=0.0):
        self.random = np.random.default_rng(seed)
        self.point, self.curvature = np.array(start, dtype=float), np.array(curvature, dtype=float)
        self.noise, self.rate, self.bias = noise, rate, bias
        self.steps, self.seconds, self.data_count = 0, 0.0, 1
        self._losses = []

    @property
    def losses(self):
        return torch.tensor(self._losses, dtype=torch.float64)

    def advance(self):
        self._losses.append(self.kl() + self.random.standard_normal())
        noise = self.noise * self.random.standard_normal(len(self.point))
        self.point = self.point - self.rate * (self.curvature @ (self.point - self.bias * self.rate) + noise)
        self.steps += 1

    def iterate(self):
        return torch.from_numpy(self.point)

    def move(self, point):
        self.point = point.numpy().copy()

    def scores(self):
        draws = self.random.standard_normal((64, len(self.point)))
        return torch.from_numpy(draws @ np.linalg.cholesky(self.curvature).T)

    def losses_at(self, points):
        noise = self.random.standard_normal(32)
        return torch.stack([torch.from_numpy(0.5 * p.numpy() @ self.curvature @ p.numpy() + noise) for p in points])

    def kl(self):
        return 0.5 * self.point @ self.curvature @ self.point

    def until(self, watch):
        while True:
            self.advance()
            if self.steps == watch.due and (stop := watch.look(self)) is not None:
                return stop, watch.close(self)


class Bursts(Noisy):
    """With noise that grows with the distance from the optimum: at rates above 2 / 11 the variance grows without bound."""

    def advance(self):
        self.point = self.point * (1 - 3 * self.rate * self.random.standard_normal(len(self.point)))
        super().advance()


def never(run):
    return None


def made(rule):
    """An instance: an option that has no default gets a value by its type."""
    values = {int: 30, float: 1.0}
    hints = get_type_hints(rule)
    required = [f.name for f in dataclasses.fields(rule) if f.default is dataclasses.MISSING]
    return rule(**{name: values.get(hints[name], never) for name in required})


@pytest.mark.parametrize("rule", CONCRETE)
class TestRule:
    def test_is_a_frozen_object_that_checks_its_counts(self, rule):
        one = made(rule)
        assert one == dataclasses.replace(one)
        for field in dataclasses.fields(rule):
            with pytest.raises(dataclasses.FrozenInstanceError):
                setattr(one, field.name, 1)
            if get_type_hints(rule)[field.name] is int:
                with pytest.raises(ValueError, match=f"{field.name} must be"):
                    dataclasses.replace(one, **{field.name: 0})

    def test_looks_again_later_or_says_why_it_ends(self, rule):
        run = Noisy(START, np.eye(3), noise=0.1, rate=0.1)
        watch = made(rule).begin(run)
        while run.steps < 2000:
            assert watch.due > run.steps
            while run.steps < watch.due:
                run.advance()
                run.seconds += 0.01
            if (stop := watch.look(run)) is not None:
                assert stop.rule == made(rule)
                assert stop.reason
                break
        else:
            assert rule is not MaxSteps, "this one ends every fit"

    def test_ends_a_fit_with_others(self, rule):
        """The rule that is met first ends the fit, and is the one that is named."""
        model, x = demo(GaussianMean)
        done = fit(model, Global(model, MeanField()), x, stop=[made(rule), MaxSteps(50)], lr=0.02, engine=Eager)
        assert done.stop.rule == (MaxSteps(50) if done.steps == 50 else made(rule))
        assert rule is not MaxSteps or done.steps == 30


@pytest.mark.parametrize(
    ("rule", "name"), [(Converged, "tolerance"), (Plateau, "tolerance"), (Plateau, "alarm"), (MaxSeconds, "seconds")]
)
def test_a_number_that_must_be_positive_is(rule, name):
    for value in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match=f"{rule.__name__}: {name} must be"):
            dataclasses.replace(made(rule), **{name: value})


def several(calls, model, guide, batch, leaves):
    """Scores of several calls. Each call forks the random state, so each needs its own seed."""
    found = []
    for seed in range(calls):
        torch.manual_seed(seed)
        found.append(score_draws(model, guide, batch, leaves))
    return torch.cat(found)


class TestScores:
    """The Fisher information agrees with the closed-form KL between two nearby Gaussians."""

    @pytest.mark.parametrize("family", GAUSSIAN)
    @pytest.mark.parametrize("model_class", [LinearRegression, LocalGaussian])
    def test_measure_the_kl(self, model_class, family):
        model, x = demo(model_class)
        guide = build(model, Local if issubclass(model_class, LocalModel) else Global, family, x)
        shake(guide, 0.5, seed=1)
        (leaf,) = guide.parameters()
        found = several(12, model, guide, Batch((x,), {}), [leaf])
        torch.manual_seed(3)
        change = 1e-3 * torch.randn_like(leaf)
        squares = (found @ change.reshape(-1)).square()
        error = float(squares.std()) / len(squares) ** 0.5
        with torch.no_grad():
            q, moved = guide.family(leaf), guide.family(leaf + change)
            exact = 2 * float(kl(q, moved).sum())
        assert error < 0.1 * exact
        # The KL is quadratic in the change up to a third-order term; its relative size is that of the change.
        assert abs(float(squares.mean()) - exact) < 5 * error + 1e-2 * exact
        assert abs(float(squares.mean()) - 2 * exact) > 5 * error, "the test would see a factor of 2"

    def test_of_a_minibatch_stand_for_the_whole(self):
        model, x = demo(LocalGaussian)
        guide = build(model, Amortized, MeanField, x)
        shake(guide, 0.3, seed=1)
        leaves = list(guide.parameters())
        index = torch.randperm(len(x))[:50]
        batch = Batch((x[index],), {"index": index, "size": len(x)})
        change = 1e-3 * torch.randn(sum(leaf.numel() for leaf in leaves)).double()
        whole, part = ((several(30, model, guide, b, leaves) @ change).square() for b in (Batch((x,), {}), batch))
        error = math.hypot(*(float(v.std()) / len(v) ** 0.5 for v in (whole, part)))
        # The rows of the batch are a random sample, which adds an error of about 10 %.
        assert abs(float(whole.mean() - part.mean())) < 5 * error + 0.3 * float(whole.mean())
        assert error < 0.2 * float(whole.mean())

    def test_know_the_model_too(self):
        """The information of a learned mean is the mean square of the score of the data at known h."""
        base, x = demo(FactorAnalysis)
        scale = base.noise_scale
        model = FactorAnalysis(base.loading, torch.nn.Parameter(base.mean.clone()), scale)
        guide = build(model, Amortized, MeanField, x)
        leaves = [model.mean]
        found = several(60, model, guide, Batch((x,), {}), leaves)
        squares = found.square()
        h = guide.q(x).sample((2000,))
        residual = (x - base.mean - h @ base.loading.mT) / scale**2
        exact = residual.square().mean(0).sum(0)
        error = squares.std(0) / len(squares) ** 0.5 + residual.square().sum(1).std(0) / 2000**0.5
        assert (error < 0.2 * exact).all()
        assert ((squares.mean(0) - exact).abs() < 5 * error).all()

    def test_are_many_however_many_data_they_are_summed_over(self):
        """Along one δ each draw gives one number, the sum over data: the mean square is a χ² with one degree per draw."""
        model, x = FactorAnalysis.demo()
        x = x.repeat(40, 1)
        guide = build(model, Amortized, MeanField, x)
        found = score_draws(model, guide, Batch((x,), {}), list(guide.parameters()))
        assert len(x) > 1000
        assert len(found) == 64

    def test_of_a_point_mass_are_the_models(self):
        model, x = demo(GaussianMean)
        guide = build(model, Global, Delta, x)
        found = score_draws(model, guide, Batch((x,), {}), [guide.lam])
        assert found.square().mean() > 1.0

    @pytest.mark.parametrize("autoguide", [AutoNormal, AutoMultivariateNormal])
    def test_of_autoguides_and_flows(self, autoguide):
        model, x = demo(GaussianMean)
        for guide in (autoguide(model), Global(model, Flow(layers=2, hidden=4))):
            guide(x)
            found = score_draws(model, guide, Batch((x,), {}), list(guide.parameters()))
            assert found.isfinite().all()
            assert found.square().mean() > 1e-6

    def test_leave_no_trace(self):
        model, x = demo(LocalGaussian)
        guide = build(model, Amortized, MeanField, x)
        state = torch.get_rng_state()
        score_draws(model, guide, Batch((x,), {}), list(guide.parameters()))
        assert torch.equal(torch.get_rng_state(), state)
        assert all(p.grad is None for p in guide.parameters())

    def test_data_count(self):
        local, x = demo(LocalGaussian)
        assert data_count(build(local, Local, MeanField, x), Batch((x,), {})) == len(x)
        batch = Batch((x[:5],), {"index": torch.arange(5), "size": len(x)})
        assert data_count(build(local, Amortized, MeanField, x), batch) == len(x)
        shared, x = demo(GaussianMean)
        assert data_count(build(shared, Global, MeanField, x), Batch((x,), {})) == 1


class TestConverged:
    """The rule alone, on quadratics whose distance from the optimum is known."""

    curvature = np.diag([1.0, 0.3, 10.0]) + 0.2

    @staticmethod
    @cache
    def runs(rule=Converged(), bias=0.0, n=40, noise=3.0, rate=0.05):  # noqa: B008
        out = []
        for seed in range(n):
            run = Noisy(START, TestConverged.curvature, noise=noise, rate=rate, seed=seed, bias=bias)
            out.append((run, *run.until(rule.begin(run))))
        return out

    def test_ends_within_its_tolerance(self):
        found = self.runs()
        assert all(stop.converged for _, stop, _ in found)
        assert Noisy(START, self.curvature, noise=3.0, rate=0.05).kl() > 5.0
        assert sum(run.kl() < WITHIN for run, _, _ in found) >= 0.95 * len(found)
        assert all(estimate.averaged for _, _, estimate in found)

    def test_the_last_iterate_would_fail(self):
        """Averaging is needed: the noise of single iterates exceeds the tolerance."""
        run = Noisy((0.0, 0.0, 0.0), self.curvature, noise=3.0, rate=0.05)
        late = []
        for _ in range(3000):
            run.advance()
            late.append(run.kl())
        assert sum(late) / len(late) > 4 * WITHIN

    def test_its_estimate_is_of_the_size_of_the_truth(self):
        found = self.runs()
        truth = torch.tensor([run.kl() for run, _, _ in found])
        claimed = torch.tensor([estimate.distance for _, _, estimate in found], dtype=torch.float64)
        assert 0.25 < truth.mean() / claimed.mean() < 2.0

    def test_claims_no_less_than_is_true(self):
        """An estimate from the noise of the last average alone was too small in a third of these runs."""
        found = self.runs()
        assert sum(run.kl() > estimate.distance for run, _, estimate in found) <= 0.2 * len(found)

    def test_leaves_a_rate_that_bursts(self):
        """At the first rate the iterates never become stationary, however long they are averaged."""
        start = np.ones(3)
        for seed in range(5):
            run = Bursts(start, np.eye(3), noise=0.3, rate=0.3, seed=seed)
            stop, estimate = run.until(Converged().begin(run))
            assert stop.converged
            assert run.rate < 2 / 11
            assert run.steps < 30_000
            assert run.kl() < 2 * estimate.distance < 0.01

    def test_halves_the_rate_until_the_bias_is_gone(self):
        """At rate γ the iterates are stationary around bias · γ, and averaging does not remove this bias."""
        found = self.runs(bias=30.0, n=4)
        assert 0.5 * 30.0**2 * 0.05**2 * self.curvature.sum() > 10 * WITHIN
        assert sum(run.kl() < 2 * WITHIN for run, _, _ in found) == 4
        assert all(run.rate < 0.05 / 4 for run, _, _ in found)

    def test_does_not_end_while_it_is_still_on_its_way(self):
        """The distance shrinks by only 1/2000 per step: a rule with a fixed number of steps would have stopped."""
        run = Noisy(START, self.curvature, noise=3.0, rate=0.0005)
        watch = Converged().begin(run)
        while run.steps < 1500:
            run.advance()
            if run.steps == watch.due:
                assert watch.look(run) is None
        assert run.kl() > 10 * WITHIN

    def test_gives_up(self):
        ((run, stop, _),) = self.runs(Converged(tolerance=1e-9, most=2000), n=1)
        assert not stop.converged
        assert run.steps == 2000
        assert "gave up after 2000 steps" in stop.reason

    def test_takes_in_parameters_that_come_later(self):
        run = Noisy((0.0, 0.0), np.eye(2), noise=1.0, rate=0.1)
        watch = Converged().begin(run)
        for _ in range(40):
            run.steps = watch.due
            watch.look(run)
        run.point, run.curvature = np.zeros(3), np.eye(3)
        assert run.until(watch)[0].converged


def autoregressive(random, runs, n):
    """Noise with variance 1 and correlation 0.9 between consecutive steps."""
    return lfilter([np.sqrt(1 - 0.9**2)], [1, -0.9], random.standard_normal((runs, n + 200)))[:, 200:]


NOISES = {
    "independent": lambda random, runs, n: random.standard_normal((runs, n)),
    "autocorrelated": autoregressive,
    "heavy-tailed": lambda random, runs, n: random.standard_t(3, (runs, n)) / np.sqrt(3),
}


class TestPlateau:
    """False alarms and power of the rule, on losses whose fall is known."""

    n, runs = 40_000, 200

    def ended(self, noise, fall, rule):
        """Steps and `Stop` of each run, or None if it did not end. The loss falls by `fall` whenever the steps double."""
        losses = NOISES[noise](np.random.default_rng(0), self.runs, self.n) - fall * np.log2(np.arange(1, self.n + 1))
        return [self.until(torch.from_numpy(row), rule.begin(None)) for row in losses]

    def until(self, losses, watch):
        run = SimpleNamespace(data_count=1)
        while watch.due <= len(losses):
            run.losses = losses[: watch.due]
            if (stop := watch.look(run)) is not None:
                return len(run.losses), stop
        return None

    @pytest.mark.parametrize("noise", NOISES)
    def test_false_alarms_are_as_rare_as_it_says(self, noise):
        """The loss falls by exactly the tolerance in every window."""
        rule = Plateau(tolerance=0.3)
        alarms = sum(end is not None for end in self.ended(noise, 0.3, rule)) / self.runs
        assert alarms <= rule.alarm + 5 * math.sqrt(rule.alarm * (1 - rule.alarm) / self.runs)

    @pytest.mark.parametrize("noise", NOISES)
    def test_ends_at_a_plateau(self, noise):
        ends = self.ended(noise, 0.0, Plateau(tolerance=1.0 if noise == "autocorrelated" else 0.3))
        assert all(ends)
        assert all(stop.converged for _, stop in ends)

    def test_a_rule_without_correction_would_not_keep_it(self):
        """Shows that the test has power: without the correction, most runs end by a false alarm."""
        rule = Plateau(tolerance=0.3, alarm=1 - 1e-9)
        alarms = sum(end is not None for end in self.ended("independent", 0.3, rule)) / self.runs
        assert alarms > 0.5

    def test_in_a_fit(self):
        model, x = demo(GaussianMean)
        done = fit(model, Global(model, MeanField()), x, lr=0.1, stop=Plateau(tolerance=2.0, least=200), steps=5000)
        assert isinstance(done.stop.rule, Plateau)
        assert "the loss fell by at most" in done.stop.reason
        assert 200 <= done.steps < 5000


def look_around(run):
    assert run.losses_at([run.iterate()]).isfinite().all()
    assert run.scores().isfinite().all()


class TestFit:
    def test_without_steps_and_rate_it_converges(self):
        model, x = demo(GaussianMean)
        guide = build(model, Global, MeanField, x)
        assert far(model, guide, x) > 10.0
        done = fit(model, guide, x, stop=Converged())
        assert far(model, guide, x) < WITHIN
        assert done.stop.converged
        assert isinstance(done.stop.rule, Converged)
        assert done.stop.distance < 0.02
        assert len(done.nelbo) == done.steps > 300

    @pytest.mark.slow
    @pytest.mark.parametrize("seed", range(3))
    @pytest.mark.parametrize("model_class", TRACTABLE)
    def test_on_every_tractable_model(self, model_class, seed):
        model, x = demo(model_class)
        if list(model.parameters()):
            pytest.skip("its optimum moves with the model")
        guide = build(model, Local if issubclass(model_class, LocalModel) else Global, FullRank, x)
        assert far(model, guide, x) > 1.0
        done = fit(model, guide, x, seed=seed, stop=Converged())
        assert done.stop.converged
        assert far(model, guide, x) < WITHIN

    @pytest.mark.slow
    def test_an_encoder_in_minibatches(self):
        model, x = demo(FactorAnalysis)
        for source in (Amortized, Local):
            guide = build(model, source, MeanField, x)
            assert far(model, guide, x) > 1.0 * len(x)
            done = fit(model, guide, x, batch_size=25)
            assert done.stop.converged
            assert far(model, guide, x) < WITHIN * len(x)

    def test_which_rule(self):
        model, x = demo(GaussianMean)
        done = fit(model, Global(model, MeanField()), x, steps=20)
        assert done.stop.rule == MaxSteps(20)
        assert done.stop.reason == "took the 20 steps it was given"
        assert not done.stop.converged
        assert math.isnan(done.stop.distance)
        done = fit(model, Global(model, MeanField()), x, stop=[MaxSteps(7), MaxSteps(9)], lr=0.01)
        assert (done.steps, done.stop.rule) == (7, MaxSteps(7))

    def test_seconds(self):
        model, x = demo(GaussianMean)
        begin = time.perf_counter()
        done = fit(model, Global(model, MeanField()), x, stop=MaxSeconds(0.5))
        assert done.stop.rule == MaxSeconds(0.5)
        assert 0.5 <= time.perf_counter() - begin < 5.0
        assert done.steps > 10

    def test_a_function_of_the_users(self):
        model, x = demo(GaussianMean)
        seen = []

        def enough(run):
            seen.append((run.steps, len(run.losses), run.iterate().shape, run.rate))
            return "enough" if run.steps >= 30 else None

        guide = Global(model, MeanField())
        done = fit(model, guide, x, steps=100, stop=When(enough, every=10), lr=0.02)
        assert done.stop.reason == "enough"
        assert done.steps == 30
        assert [s[:2] for s in seen] == [(10, 10), (20, 20), (30, 30)]
        assert seen[0][3] < 0.02, "the schedule of a fit of 100 steps is kept"
        assert seen[0][2] == guide.lam.shape

    def test_rules_do_not_change_the_steps(self):
        model, x = demo(LinearRegression)
        runs = [
            fit(model, Global(model, FullRank()), x, steps=60, stop=stop, seed=2, engine=Eager).nelbo
            for stop in (None, When(look_around, every=7))
        ]
        assert torch.equal(*runs)

    def test_rates(self):
        """A rate that is not given is one of those that are tried; one that is given is kept."""
        model, x = demo(GaussianMean)
        rates = []
        fit(
            model,
            Global(model, MeanField()),
            x,
            stop=[Converged(), When(lambda run: rates.append(run.rate), every=1)],
            steps=3,
        )
        assert set(rates) <= {0.3, 0.1, 0.03, 0.01}
        assert rates
        fit(
            model,
            Global(model, MeanField()),
            x,
            lr=0.02,
            stop=[Converged(), When(lambda run: rates.append(run.rate))],
            steps=100,
        )
        assert rates[-1] == 0.02

    def test_a_rate_that_fails_after_its_trial_gives_way(self):
        """Adam overshoots the optimum at 18.5: by 0.5 at rate 0.3, in step 85, after the trial of 50 steps; by 0.1 at 0.1."""

        def model(x):
            h = pyro.sample("h", dist.Normal(torch.zeros((), dtype=torch.float64), 1000.0))
            pyro.factor("wall", -5 * (h - 18.5).abs() - 0.5 * (h - 18.5) ** 2 + torch.where(h > 18.8, torch.nan, 0.0))

        def guide(x):
            pyro.sample("h", dist.Normal(pyro.param("loc", torch.zeros((), dtype=torch.float64)), 0.01))

        x, rates = torch.zeros(1), []
        seen = When(lambda run: rates.append(run.rate), every=1)
        done = fit(model, guide, x, stop=[Converged(most=400), seen], engine=Eager)
        assert rates[0] > max(rates[-100:])
        assert 10 < done.params["params"]["loc"].detach() < 18.8
        with pytest.raises(NonFiniteLossError):
            fit(model, guide, x, lr=rates[0], stop=Converged(most=400), engine=Eager)
        with pytest.raises(NonFiniteLossError):
            fit(model, guide, x, lr=rates[0], steps=400, schedule=None, engine=Eager)

    def test_a_gradient_that_is_not_finite_in_one_trial_does_not_spoil_the_next(self):
        """The gradient is NaN beyond a wall, which Adam crosses within its trial of 50 steps at rate 0.3, but not at 0.1."""

        def model(x):
            h = pyro.sample("h", dist.Normal(torch.zeros((), dtype=torch.float64), 1000.0))
            pyro.factor("wall", h + 1e-6 * torch.where(h < 8, (8 - h).sqrt(), 0.0))

        def guide(x):
            pyro.sample("h", dist.Normal(pyro.param("loc", torch.zeros((), dtype=torch.float64)), 0.01))

        rates = []
        seen = When(lambda run: rates.append(run.rate), every=1)
        rules = [Converged(), seen, MaxSteps(60)]
        done = fit(model, guide, torch.zeros(1), objective=TraceELBO(), stop=rules, engine=Eager)
        assert rates[0] == 0.1
        assert done.steps == 60

    def test_a_rate_at_which_the_loss_rises_gives_way(self):
        """At rates 0.3 and 0.1, q widens without bound after the trial, but the loss stays finite for thousands of steps."""
        data = load_breast_cancer()
        table = datasets.Dataset("breast cancer", torch.from_numpy(data.data), torch.from_numpy(data.target).double())
        model, x = LogisticRegression.from_dataset(table)
        rates, counts = [], []

        def note(run):
            rates.append(run.rate)
            counts.append(run.steps)

        seen = When(note, every=50)
        done = fit(model, Global(model, FullRank()), x, stop=[Converged(), seen, MaxSteps(400)], engine=Eager)
        assert rates[0] >= 0.1
        assert rates[-1] == 0.03
        assert counts.count(200) == len(set(rates))
        assert done.steps == 400
        assert done.nelbo[-100:].median() < done.nelbo[:100].median()
        with pytest.raises(DivergedError, match="lr is too high"):
            fit(model, Global(model, FullRank()), x, lr=0.3, objective=StickingTheLanding(8), steps=800, schedule=None)

    @pytest.mark.parametrize("optimiser", [DoG, DoWG])
    def test_no_rate_is_sought_for_an_optimiser_that_has_its_own(self, optimiser):
        model, x = demo(GaussianMean)
        made = []

        def counted(parameters, lr):
            made.append(lr)
            return optimiser(parameters, lr=lr)

        for stop in (Converged(most=20), None):
            made.clear()
            fit(model, Global(model, MeanField()), x, steps=20, stop=stop, optimiser=counted, engine=Eager)
            assert len(made) == (2 if stop else 1)

    def test_objectives(self):
        model, x = demo(GaussianMean)
        batch = Batch((x,), {})
        assert lowest_variance_objective(build(model, Global, MeanField, x), batch) == StickingTheLanding(8)
        assert lowest_variance_objective(build(model, Global, Delta, x), batch) == TraceELBO(8)
        assert lowest_variance_objective(AutoNormal(model), batch) == StickingTheLanding(8)
        local, x = demo(LocalGaussian)
        assert lowest_variance_objective(build(local, Local, MeanField, x), Batch((x,), {})) == StickingTheLanding(1)
        binary, x = demo(BinaryVAE)
        assert is_discrete(BinaryVAE)
        assert lowest_variance_objective(build(binary, Amortized, Bernoulli, x), Batch((x,), {})) == TraceELBO(1)

    @pytest.mark.slow
    def test_a_point_estimate(self):
        model, x = demo(GaussianMean)
        done = fit(model, AutoDelta(model), x)
        assert done.stop.converged
        torch.testing.assert_close(done.guide.median(x)["h"], model.posterior(x).mean, rtol=0.0, atol=0.05)

    def test_bad_input(self):
        model, x = demo(GaussianMean)
        guide = Global(model, MeanField())
        with pytest.raises(TypeError, match="pass an instance, Converged"):
            fit(model, guide, x, stop=Converged)
        with pytest.raises(TypeError, match="holds 3"):
            fit(model, guide, x, stop=[3])
        with pytest.raises(ValueError, match="a schedule is made for a known number of steps"):
            fit(model, guide, x, schedule=lambda o, n: torch.optim.lr_scheduler.ExponentialLR(o, 0.9))


def gaussian(x):
    h = pyro.sample("h", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(h, 1.0), obs=x)


class TestDivergence:
    x = torch.ones(5).double()

    def test_of_the_elbo(self):
        def sgd(parameters, lr):
            return torch.optim.SGD(parameters, lr=lr)

        def guide(x):
            pyro.sample("h", dist.Normal(pyro.param("loc", torch.zeros(()).double()), 0.1))

        # Each step multiplies ½ · 6 (h − 5/6)² by (1 − 6 lr)².
        with pytest.raises(DivergedError, match="the loss has risen from .* the ELBO falls to −inf") as caught:
            fit(gaussian, guide, self.x, steps=3000, lr=0.345, optimiser=sgd, schedule=None, engine=Eager)
        assert caught.value.step in {100, 200, 400, 800}
        fit(gaussian, guide, self.x, steps=300, lr=0.3, optimiser=sgd, schedule=None, engine=Eager)

    @pytest.mark.parametrize("place", [0.0, 1.0])
    def test_of_the_standard_deviation(self, place):
        """n ≥ 2 observations at the mean of a Normal whose scale is |h − place|: the density is unbounded at h = place."""

        def model(x):
            h = pyro.sample("h", dist.Normal(0.0, 1.0))
            with pyro.plate("data", len(x)):
                pyro.sample("x", dist.Normal(place, (h - place).abs() + 1e-100), obs=x)

        def guide(x):
            scale = pyro.param("scale", torch.tensor(0.1).double(), constraint=dist.constraints.positive)
            pyro.sample("h", dist.Normal(place, scale))

        with pytest.raises(DivergedError, match="standard deviation of 'h' under the guide is numerically zero") as caught:
            fit(model, guide, torch.full((5,), place).double(), steps=2000, lr=0.1, schedule=None)
        assert caught.value.site == "h"

    def test_goes_through_a_pickle(self):
        error = pickle.loads(pickle.dumps(DivergedError(3, "h", "it fell")))
        assert (error.step, error.site) == (3, "h")
        assert str(error) == "the fit diverged: after 3 steps it fell."

    def test_a_point_mass_is_none(self):
        model, x = demo(GaussianMean)
        assert fit(model, Global(model, Delta()), x, steps=150).steps == 150
        assert fit(model, AutoDelta(model), x, steps=150).steps == 150


@pytest.mark.slow
def test_the_end_is_better_averaged():
    """With a noisy objective the average of the iterates is taken, and is better than the last iterate."""
    model, x = demo(LinearRegression)
    guide = build(model, Global, FullRank, x)
    last = []

    def remember(run):
        last[:] = [run.iterate()]

    done = fit(
        model, guide, x, objective=TraceELBO(), lr=0.05, stop=[When(remember, every=8), Converged(most=4000)], engine=Eager
    )
    assert done.stop.averaged
    average = far(model, guide, x)
    with torch.no_grad():
        guide.lam.copy_(last[0])
    assert average < far(model, guide, x)


def test_stop_goes_through_a_pickle():
    model, x = demo(LocalGaussian)
    done = fit(model, Amortized(model, MeanField(), Linear()), x, steps=3)
    assert repr(pickle.loads(pickle.dumps(done.stop))) == repr(done.stop)


@pytest.mark.parametrize("limit", [math.nan, math.inf, -math.inf, 1.5, torch.tensor(3.5), "3", None, True], ids=repr)
@pytest.mark.parametrize(
    "make",
    [
        MaxSteps,
        lambda limit: When(lambda run: None, every=limit),
        lambda limit: Converged(most=limit),
        lambda limit: Plateau(least=limit),
        lambda limit: fit_many([(None, None)], torch.zeros(3), seeds=[0], steps=limit),
    ],
    ids=["MaxSteps", "When", "Converged", "Plateau", "fit_many"],
)
def test_a_limit_that_is_never_met_is_refused_before_any_work(make, limit):
    with pytest.raises((TypeError, ValueError)):
        make(limit)


@pytest.mark.parametrize("seconds", [math.nan, -1.0, 0.0, "3", None], ids=repr)
def test_a_time_that_never_comes_is_refused_before_any_work(seconds):
    with pytest.raises((TypeError, ValueError)):
        MaxSeconds(seconds)
