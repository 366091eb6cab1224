"""Fits that run simultaneously take the same trajectories as the fits alone."""

from __future__ import annotations

import copy
import math
import warnings

import pyro
import pytest
import torch
from problems import demo
from pyro.distributions import Bernoulli, Beta, Normal, constraints
from torch.nn import Parameter

import guides
import models
from guides import MLP, Amortized, Flow, FullRank, Global, Linear, Local, LowRank, MeanField
from inference import NonFiniteLossError, compare, fit, fit_many
from inference.engine import Auto, CompiledLoop, Graph, SimultaneousFits, auto
from inference.engine.graphs.capture import capture
from inference.engine.graphs.noise import Noise, draws_of
from inference.objectives import IWAE, AnalyticKL, StickingTheLanding, TraceELBO
from inference.programs.isolation import isolated
from inference.stopping import MaxSteps
from models import EightSchools, FactorAnalysis, GaussianMean, LinearRegression, LocalGaussian

SEEDS = [3, 1, 4]
"""Neither sorted nor starting at zero."""
STEPS = 90
GUIDES = {
    "Global-MeanField": (GaussianMean, lambda m: Global(m, MeanField())),
    "Global-FullRank": (LinearRegression, lambda m: Global(m, FullRank())),
    "Local-MeanField": (LocalGaussian, lambda m: Local(m, MeanField())),
    "Amortized-FullRank": (FactorAnalysis, lambda m: Amortized(m, FullRank(), Linear())),
    "Amortized-MLP": (FactorAnalysis, lambda m: Amortized(m, MeanField(), MLP((8,)))),
}
MORE = {"Global-Flow": (EightSchools, lambda m: Global(m, Flow(layers=2, hidden=4))), **GUIDES}


def pairs_of(model, factory, seeds=SEEDS):
    pairs = []
    for seed in seeds:
        with isolated(seed):
            own = copy.deepcopy(model)
            pairs.append((own, factory(own)))
    return pairs


def both(model, factory, x, **options):
    together = fit_many(pairs_of(model, factory), x, seeds=SEEDS, **options)
    alone = [fit(*pair, x, seed=seed, **options) for pair, seed in zip(pairs_of(model, factory), SEEDS, strict=True)]
    return together, alone


def require_same(together, alone, tolerance=1e-10):
    for one, other in zip(together, alone, strict=True):
        assert (one.steps, one.seed) == (other.steps, other.seed)
        assert torch.allclose(one.nelbo, other.nelbo, rtol=tolerance, atol=tolerance)
        # Guides of one class have names of their own in the store, so parameters are compared in order.
        for name, ours, theirs in zip(one.params["params"], *(f.params["params"].values() for f in (one, other)), strict=True):
            assert torch.allclose(ours, theirs, rtol=1e3 * tolerance, atol=1e3 * tolerance), name


@pytest.fixture
def machines(monkeypatch):
    """Every `SimultaneousFits` that is created during the test."""
    made = []
    before = SimultaneousFits.__init__

    def spy(self, *args):
        before(self, *args)
        made.append(self)

    monkeypatch.setattr(SimultaneousFits, "__init__", spy)
    return made


class TestTrajectories:
    @pytest.mark.parametrize("name", GUIDES)
    def test_each_fit_is_what_it_is_alone(self, name, machines):
        case, factory = GUIDES[name]
        together, alone = both(*[demo(case)[0], factory], demo(case)[1], steps=STEPS, lr=0.05, engine=Graph)
        require_same(together, alone)
        assert machines[0].instead is None
        assert not torch.allclose(together[0].nelbo, together[1].nelbo)

    @pytest.mark.parametrize("objective", [TraceELBO(3), AnalyticKL(), StickingTheLanding(), IWAE(4)], ids=repr)
    def test_objectives(self, objective, machines):
        model, x = demo(LocalGaussian)
        factory = lambda m: Local(m, MeanField())  # noqa: E731
        require_same(*both(model, factory, x, steps=40, objective=objective, engine=Graph))
        assert machines[0].instead is None

    @pytest.mark.parametrize(
        "optimiser",
        [torch.optim.AdamW, torch.optim.RMSprop, lambda p, lr: torch.optim.SGD(p, lr=lr / 100, momentum=0.9)],
        ids=["AdamW", "RMSprop", "SGD"],
    )
    def test_optimisers(self, optimiser, machines):
        model, x = demo(LinearRegression)
        require_same(*both(model, GUIDES["Global-FullRank"][1], x, steps=40, optimiser=optimiser, engine=Graph))
        assert machines[0].instead is None

    def test_minibatches_are_each_fit_s_own(self, machines):
        model, x = demo(FactorAnalysis)
        options = {"steps": 30, "batch_size": 7, "transform": lambda v: v + 0.1 * torch.randn_like(v), "engine": Graph}
        require_same(*both(model, GUIDES["Amortized-FullRank"][1], x, **options))
        assert machines[0].instead is None

    def test_plain_functions_keep_their_own_values(self):
        x = torch.randn(20, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

        def model(x):
            z = pyro.sample("z", Normal(torch.zeros((), dtype=x.dtype), 1.0))
            with pyro.plate("data", len(x)):
                pyro.sample("x", Normal(z, 1.0), obs=x)

        def guide(x):
            del x
            loc = pyro.param("loc", lambda: torch.randn((), dtype=torch.float64))
            pyro.sample("z", Normal(loc, pyro.param("scale", torch.ones((), dtype=torch.float64))))

        together = fit_many([(model, guide)] * 3, x, seeds=SEEDS, steps=STEPS, engine=Graph)
        alone = [fit(model, guide, x, seed=seed, steps=STEPS, engine=Graph) for seed in SEEDS]
        require_same(together, alone)
        values = [done.params["params"]["loc"].item() for done in together]
        assert len(set(values)) == 3
        assert not pyro.get_param_store().keys()

    def test_a_learned_model_is_each_fit_s_own(self, machines):
        _, x = demo(FactorAnalysis)
        model = models.ProbabilisticPCA(Parameter(torch.randn(6, 2).double()))
        together, alone = both(model, lambda m: Amortized(m, MeanField(), Linear()), x, steps=STEPS, engine=Graph)
        require_same(together, alone)
        assert machines[0].instead is None

    @pytest.mark.slow
    @pytest.mark.parametrize("name", MORE)
    def test_compiled(self, name, machines):
        case, factory = MORE[name]
        model, x = demo(case)
        require_same(*both(model, factory, x, steps=400, lr=0.02, engine=CompiledLoop))
        assert machines[0].instead is None

    def test_restarts_take_their_steps_together(self, machines):
        model, x = demo(GaussianMean)
        fit(model, Global(model, MeanField()), x, steps=5, restarts=5, engine=Graph)
        assert machines[0].instead is None
        assert (machines[0].taken, len(machines[0].members)) == (200, 5)

    def test_random_states_are_left_alone(self):
        model, x = demo(LocalGaussian)
        before = torch.get_rng_state()
        fit_many(pairs_of(model, GUIDES["Local-MeanField"][1]), x, seeds=SEEDS, steps=20, engine=Graph)
        assert torch.equal(before, torch.get_rng_state())


class TestApart:
    """If a step cannot be mapped over fits, they run one after another, on the same trajectory, with one warning."""

    @staticmethod
    def both_with_a_warning(match, *args, **options):
        said = f"the fits run one after another from step [0-9]+ on, .*{match}"
        with pytest.warns(UserWarning, match=said) as caught:
            found = both(*args, **options)
        assert len(caught) == 1
        require_same(*found)

    def test_other_draws_than_gaussian(self, machines):
        x = torch.ones(10, dtype=torch.float64)

        def model(x):
            p = pyro.sample("p", Beta(torch.ones((), dtype=x.dtype), 1.0))
            with pyro.plate("data", len(x)):
                pyro.sample("x", Bernoulli(p), obs=x)

        def guide(x):
            a = pyro.param("a", torch.ones((), dtype=x.dtype) * 2, constraint=constraints.positive)
            pyro.sample("p", Beta(a, 2.0))

        self.both_with_a_warning("it draws by aten._sample_dirichlet", model, lambda m: guide, x, steps=STEPS, engine=Graph)
        assert machines[0].instead is not None

    def test_a_program_that_counts_its_calls(self):
        model, x = demo(GaussianMean)

        class Counting(guides.Global):
            calls = 0

            def forward(self, *args, **kwargs):
                self.calls += 1
                return super().forward(*args, **kwargs)

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            require_same(*both(model, lambda m: Counting(m, MeanField()), x, steps=STEPS, engine=Auto))

    def test_guides_that_differ_in_a_constant(self, machines):
        x = demo(GaussianMean)[1]

        def factory(m):
            shift = torch.randn((), dtype=torch.float64)

            def guide(x):
                loc = pyro.param("loc", torch.zeros((), dtype=torch.float64))
                pyro.sample("h", Normal(loc + shift, 1.0))

            return guide

        def plain(x):
            h = pyro.sample("h", Normal(torch.zeros((), dtype=x.dtype), 1.0))
            with pyro.plate("data", len(x)):
                pyro.sample("x", Normal(h, 1.0), obs=x[:, 0])

        self.both_with_a_warning("its loss or update differs in steps 1 to 2", plain, factory, x, steps=STEPS, engine=Graph)
        assert machines[0].instead is not None

    def test_operations_that_cannot_be_mapped(self, machines):
        model, x = demo(LinearRegression)
        self.both_with_a_warning("mapped over several", model, lambda m: Global(m, LowRank(2)), x, steps=20, engine=Graph)
        assert machines[0].instead is not None

    def test_auto_decides_in_silence(self, machines, monkeypatch):
        """Fits by the default engine run one after another without a warning: there is nothing for the user to do."""
        monkeypatch.setattr(auto, "CAPTURE", 0)
        monkeypatch.setattr(auto, "MAX_SMALL_STEP", math.inf)
        model, x = demo(LinearRegression)
        require_same(*both(model, lambda m: Global(m, LowRank(2)), x, steps=20, engine=Auto), 1e-8)
        assert machines[0].instead is not None

    def test_rules_are_each_fit_s_own(self, machines):
        model, x = demo(GaussianMean)
        together, alone = both(model, GUIDES["Global-MeanField"][1], x, stop=MaxSteps(20), engine=Graph)
        require_same(together, alone, 0.0)
        assert not machines


class TestFailures:
    def test_a_number_that_is_not_finite_is_found_at_its_step(self):
        model, x = demo(LinearRegression)
        factory = GUIDES["Global-FullRank"][1]
        steps = set()
        for pair, seed in zip(pairs_of(model, factory), SEEDS, strict=True):
            with pytest.raises(NonFiniteLossError) as alone:
                fit(*pair, x, seed=seed, steps=200, lr=1e4, engine=Graph)
            steps.add((alone.value.step, alone.value.site))
        with pytest.raises(NonFiniteLossError) as together:
            fit_many(pairs_of(model, factory), x, seeds=SEEDS, steps=200, lr=1e4, engine=Graph)
        assert (together.value.step, together.value.site) in steps

    def test_bad_input(self):
        model, x = demo(GaussianMean)
        guide = Global(model, MeanField())
        with pytest.raises(ValueError, match="at least one"):
            fit_many([], x, seeds=[], steps=5)
        with pytest.raises(ValueError, match="2 pairs, but 1 seeds"):
            fit_many(pairs_of(model, GUIDES["Global-MeanField"][1], [0, 1]), x, seeds=[0], steps=5)
        with pytest.raises(TypeError, match="LBFGS evaluates the loss several times"):
            fit_many([(model, guide)], x, seeds=[0], steps=5, optimiser=torch.optim.LBFGS)
        with pytest.raises(TypeError, match="pass an instance, TraceELBO"):
            fit_many([(model, guide)], x, seeds=[0], steps=5, objective=TraceELBO)
        with pytest.raises(ValueError, match="steps must be at least 1"):
            fit_many([(model, guide)], x, seeds=[0], steps=0)
        with pytest.raises(ValueError, match="also belongs to pair 0"):
            fit_many([(model, guide)] * 2, x, seeds=[0, 1], steps=5)


def test_compare_gives_what_single_seeds_give():
    model, x = demo(LinearRegression)
    guides_ = {"full rank": GUIDES["Global-FullRank"][1]}
    how = {"steps": 60, "lr": 0.05, "engine": Graph, "draws": 50}
    joint = compare(model, guides_, x, seeds=[5, 2], **how)
    single = [compare(model, guides_, x, seeds=[s], **how) for s in (5, 2)]
    ours = [run.elbo for run in joint.runs if run.fit]
    theirs = [run.elbo for one in single for run in one.runs if run.fit]
    assert ours == pytest.approx(theirs, rel=1e-10)


class TestNoise:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    @pytest.mark.parametrize("shapes", [[(), (), (8,)], [(4, 8)], [(3,), (5, 20)], [(100,)], [(16,), (2, 16)]], ids=str)
    def test_it_is_the_generator_s(self, shapes, dtype):
        """Drawing all steps in one call gives the same numbers and final state as drawing step by step, to the last bit."""
        noise = Noise([torch.empty(shape, dtype=dtype) for shape in shapes])
        with torch.random.fork_rng():
            torch.manual_seed(7)
            expected = [torch.cat([torch.randn(shape, dtype=dtype).reshape(-1) for shape in shapes]) for _ in range(6)]
            after = torch.get_rng_state()
            torch.manual_seed(7)
            (rows,) = noise.draw(6)
            assert torch.equal(rows, torch.stack(expected))
            assert torch.equal(torch.get_rng_state(), after)

    def test_two_dtypes(self):
        noise = Noise([torch.empty(3), torch.empty(20, dtype=torch.float64), torch.empty(2)])
        with torch.random.fork_rng():
            torch.manual_seed(7)
            single = [[torch.randn(3), torch.randn(20, dtype=torch.float64), torch.randn(2)] for _ in range(4)]
            torch.manual_seed(7)
            floats, doubles = noise.draw(4)
        assert torch.equal(floats, torch.stack([torch.cat([a, c]) for a, _, c in single]))
        assert torch.equal(doubles, torch.stack([b for _, b, _ in single]))

    def test_other_draws_are_refused(self):
        rate = torch.tensor([0.2])
        step = capture(lambda: [torch.bernoulli(rate)], [], [rate])
        with pytest.raises(RuntimeError, match="Gaussian"):
            draws_of(step)
