"""Every engine takes the trajectory of Pyro alone, or says that it does not and leaves the step to Pyro."""

from __future__ import annotations

import itertools
import math
import re
import warnings
from contextlib import nullcontext

import pyro
import pyro.distributions as dist
import pytest
import torch
from problems import FIXED_PAIRS, build, demo
from programs import PROGRAMS
from pyro.infer import Trace_ELBO, autoguide

import inference.engine
import inference.engine.auto
from guides import Amortized, MeanField, SemiAmortized
from inference import fit
from inference.engine import Auto, CaptureError, CompiledLoop, Eager, Engine, Graph, capture
from inference.engine.graphs.hidden_state import memory
from inference.engine.graphs.simplify import is_random
from inference.engine.strategy import Strategy
from inference.objectives import TraceELBO
from inference.programs.isolation import isolated
from models import FactorAnalysis, GaussianMean, LinearRegression

ENGINES = [
    e for e in map(vars(inference.engine).get, inference.engine.__all__) if isinstance(e, type) and issubclass(e, Engine)
]
FAST = [
    pytest.param(engine, marks=pytest.mark.slow if engine is CompiledLoop else ())
    for engine in ENGINES
    if engine not in (Engine, Eager)
]


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    """Auto captures at once, so that short fits test it."""
    monkeypatch.setattr(inference.engine.auto, "CAPTURE", 0)
    monkeypatch.setattr(inference.engine.auto, "MAX_SMALL_STEP", math.inf)


AUTOGUIDES = [
    "AutoDelta",
    "AutoDiagonalNormal",
    "AutoHierarchicalNormalMessenger",
    "AutoIAFNormal",
    "AutoLaplaceApproximation",
    "AutoLowRankMultivariateNormal",
    "AutoMultivariateNormal",
    "AutoNormal",
    "AutoNormalMessenger",
    "AutoRegressiveMessenger",
    "AutoStructured",
]
"""All of Pyro's that stand by themselves and are for continuous latents, but AutoNormalizingFlow, which wants a transform, and
AutoGaussian, which is for single precision."""


def trajectories(make, model, x, engine, **options):
    """Losses and final parameters by Pyro alone and by `engine`, from the same start."""
    ends = []
    for chosen in (Eager, engine):
        guide = make()
        done = fit(model, guide, x, engine=chosen, **options)
        ends.append((done.nelbo, [p.detach() for p in guide.parameters()]))
    return ends


def assert_same(ends, dtype=torch.float64):
    tolerance = 1e-8 if dtype == torch.float64 else 1e-3
    (losses, parameters), (ours, our_parameters) = ends
    torch.testing.assert_close(ours, losses, rtol=tolerance, atol=tolerance)
    for a, b in zip(our_parameters, parameters, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)
    assert losses[-1] != losses[0]


def warned(source):
    """A SemiAmortized guide seeds torch's generator for its climb, which no graph does: that is said."""
    seeds = source is SemiAmortized
    return pytest.warns(UserWarning, match="it draws other random numbers than the program") if seeds else nullcontext()


@pytest.mark.parametrize("engine", FAST)
class TestTrajectory:
    @pytest.mark.parametrize(("model_class", "source", "family"), FIXED_PAIRS)
    def test_of_every_model_and_guide(self, engine, model_class, source, family):
        model, x = demo(model_class)

        def make():
            torch.manual_seed(1)
            return build(model, source, family, x)

        with warned(source):
            assert_same(trajectories(make, model, x, engine, steps=20, lr=0.02))

    @pytest.mark.parametrize(("model_class", "source", "family"), [p for p in FIXED_PAIRS if p.values[2] is MeanField])
    def test_of_minibatches(self, engine, model_class, source, family):
        model, x = demo(model_class)

        def make():
            torch.manual_seed(1)
            return build(model, source, family, x)

        with warned(source):
            assert_same(trajectories(make, model, x, engine, steps=20, lr=0.02, batch_size=7))

    @pytest.mark.parametrize("name", AUTOGUIDES)
    def test_of_autoguides(self, engine, name):
        model, x = demo(FactorAnalysis)

        def make():
            pyro.set_rng_seed(1)
            guide = getattr(autoguide, name)(model)
            with pyro.get_param_store().scope():
                guide(x)
            return guide.double()

        # A messenger keeps the traces of its last call, which the next call could read. Auto watches from the
        # second call on: the first one makes them.
        remembers = name.endswith("Messenger") and engine is not Auto
        with pytest.warns(UserWarning, match="it keeps state between calls") if remembers else nullcontext():
            assert_same(trajectories(make, model, x, engine, steps=20, lr=0.01))

    @pytest.mark.parametrize("name", ["AutoNormal", "AutoGaussian"])
    def test_of_single_precision(self, engine, name):
        model, x = LinearRegression.demo()
        assert_same(trajectories(lambda: getattr(autoguide, name)(model), model, x, engine, steps=10), torch.float32)

    def test_of_draws_that_are_not_reparameterised_through_noise(self, engine):
        def model(x):
            rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
            share = pyro.sample("share", dist.Beta(2.0, 2.0))
            pyro.sample("x", dist.Normal(rate * share, 1.0).expand(x.shape).to_event(1), obs=x)

        def guide(x):
            a = pyro.param("a", torch.tensor(2.0), constraint=dist.constraints.positive)
            b = pyro.param("b", torch.tensor(3.0), constraint=dist.constraints.positive)
            pyro.sample("rate", dist.Gamma(a, b))
            pyro.sample("share", dist.Beta(a, b))

        x = torch.ones(5)
        losses = [fit(model, guide, x, steps=20, engine=e).nelbo for e in (Eager, engine)]
        torch.testing.assert_close(losses[0], losses[1], rtol=1e-5, atol=1e-5)

    def test_of_a_score_function(self, engine):
        def model(x):
            with pyro.plate("data", len(x)):
                h = pyro.sample("h", dist.Bernoulli(0.3))
                pyro.sample("x", dist.Normal(h, 1.0), obs=x)

        def guide(x):
            logits = pyro.param("logits", torch.zeros(len(x)))
            with pyro.plate("data", len(x)):
                pyro.sample("h", dist.Bernoulli(logits=logits))

        x = torch.linspace(-1, 2, 7)
        losses = [fit(model, guide, x, steps=20, lr=0.1, engine=e).nelbo for e in (Eager, engine)]
        torch.testing.assert_close(losses[0], losses[1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("engine", FAST)
class TestFallback:
    x = torch.ones(3)

    def same_with_a_warning(self, engine, model, guide, match, steps=20):
        eager = fit(model(), guide, self.x, steps=steps, engine=Eager)
        with pytest.warns(UserWarning, match=match):
            ours = fit(model(), guide, self.x, steps=steps, engine=engine)
        torch.testing.assert_close(ours.nelbo, eager.nelbo, rtol=1e-6, atol=0.0)

    def same_to_the_last_bit(self, engine, make):
        """Every engine sees that the program keeps state before it captures anything, says so, and leaves it to Pyro."""
        eager = fit(make(), guide, self.x, steps=20, engine=Eager).nelbo
        with pytest.warns(UserWarning, match="by Pyro alone .* it keeps state between calls, in"):
            assert torch.equal(fit(make(), guide, self.x, steps=20, engine=engine).nelbo, eager)

    def test_control_flow_on_a_value(self, engine):
        def make():
            def model(x):
                h = pyro.sample("h", dist.Normal(0.0, 1.0))
                scale = 1.0 if h > 0 else 2.0
                pyro.sample("x", dist.Normal(h, scale).expand(x.shape).to_event(1), obs=x)

            return model

        self.same_with_a_warning(engine, make, guide, r"test_engine\.py:\d+ \(scale = 1\.0 if h > 0")

    def test_a_program_that_changes_with_time(self, engine):
        """As in annealing: a step captured at first would be right for a while."""

        def make():
            calls = iter(range(1000))

            def model(x):
                h = pyro.sample("h", dist.Normal(0.0, 1.0))
                scale = 1.0 if next(calls) < 3 else 2.0
                pyro.sample("x", dist.Normal(h, scale).expand(x.shape).to_event(1), obs=x)

            return model

        self.same_to_the_last_bit(engine, make)

    def test_a_buffer_changed_in_place(self, engine):
        def make():
            count = torch.zeros(())

            def model(x):
                count.add_(1.0)
                h = pyro.sample("h", dist.Normal(0.0, 1.0))
                pyro.sample("x", dist.Normal(h, 1.0 + count / 10).expand(x.shape).to_event(1), obs=x)

            return model

        self.same_to_the_last_bit(engine, make)

    def test_the_running_moments_of_a_batch_norm(self, engine):
        def model(x):
            h = pyro.sample("h", dist.Normal(0.0, 1.0))
            seen = torch.nn.functional.batch_norm(torch.stack([x, x + h], -1), *self.moments, training=True)
            pyro.sample("x", dist.Normal(seen.sum(-1) + h, 1.0).to_event(1), obs=x)

        x = torch.tensor([0.0, 1.0, 3.0])
        ends = []
        for chosen in (Eager, engine):
            self.moments = torch.zeros(2), torch.ones(2)
            with (
                nullcontext()
                if chosen is Eager
                else pytest.warns(UserWarning, match="keeps state between calls, in `moments`")
            ):
                ends.append((fit(model, guide, x, steps=20, engine=chosen).nelbo, *self.moments))
        assert all(map(torch.equal, *ends))

    def test_objectives_of_pyro_run_by_pyro(self, engine):
        def model(x):
            h = pyro.sample("h", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(h, 1.0).expand(x.shape).to_event(1), obs=x)

        runs = [fit(model, guide, self.x, steps=5, objective=Trace_ELBO(), engine=e).nelbo for e in (Eager, engine)]
        assert torch.equal(*runs)


def guide(x):
    loc = pyro.param("loc", torch.tensor(0.1))
    pyro.sample("h", dist.Normal(loc, 1.0))


class TestCapture:
    def test_keeps_random_operations_and_drops_the_rest(self):
        leaf = torch.ones(3, requires_grad=True)

        def step():
            torch.randn(2)
            scale = torch.arange(3.0).exp()
            loss = (leaf * scale * torch.randn(3)).sum() + (leaf * scale).sum()
            return [loss.detach(), *torch.autograd.grad(loss, [leaf])]

        graph = capture(step, [leaf], [])
        assert sum(is_random(node) for node in graph.graph.nodes) == 2
        assert not any(node.target is torch.ops.aten.exp.default for node in graph.graph.nodes)
        torch.manual_seed(3)
        expected = step()
        torch.manual_seed(3)
        for found, wanted in zip(graph([leaf.detach()], []), expected, strict=True):
            torch.testing.assert_close(found, wanted)
        torch.manual_seed(3)
        assert graph([2 * leaf.detach()], [])[0] == 2 * expected[0]

    @pytest.mark.parametrize(
        "sized",
        [
            lambda v: v[v > 0],
            lambda v: v.masked_select(v > 0),
            lambda v: v[(v > 0).nonzero()[:, 0]],
            lambda v: v.where(v > 0, 0.0).unique(),
            lambda v: v.repeat_interleave((v > 0).long()),
        ],
        ids=["mask", "masked_select", "nonzero", "unique", "repeat_interleave"],
    )
    def test_refuses_a_size_that_depends_on_values(self, sized):
        leaf = torch.tensor([-1.0, 1.0, 2.0], requires_grad=True)
        with pytest.raises(CaptureError, match="the size of a tensor depends on values"):
            capture(lambda: [sized(leaf).sum()], [leaf], [])

    def test_takes_a_size_that_depends_on_data_alone(self):
        leaf, data = torch.ones(3, requires_grad=True), torch.tensor([1.0, -1.0, 2.0])

        def step():
            return [(leaf * data)[data > 0].sum()]

        with pytest.raises(CaptureError, match="depends on values"):
            capture(step, [leaf], [data])
        assert capture(step, [leaf], [data], fixed=[data])([2 * leaf.detach()], [data])[0] == 6

    def test_refuses_a_generator_of_the_programs_own(self):
        generator = torch.Generator()
        with pytest.raises(CaptureError, match="generator of the program's own"):
            capture(lambda: [torch.randn(3, generator=generator)], [], [])

    def test_says_where_it_fails(self):
        leaf = torch.ones(3, requires_grad=True)
        with pytest.raises(CaptureError, match=r"test_engine\.py:\d+ \(.*leaf\.sum\(\)"):
            capture(lambda: [leaf * float(leaf.sum())], [leaf], [])


def test_the_guide_of_a_global_model_is_faster_to_step_than_to_capture_twice():
    """One graph serves every batch of a shape: an epoch with a smaller last batch needs two."""
    model, x = demo(GaussianMean)
    seen = []

    class Counting(Graph):
        def step(self, batch):
            loss = super().step(batch)
            seen.append(len(self._graphs))
            return loss

    fit(model, autoguide.AutoNormal(model), x, steps=30, batch_size=6, engine=Counting)
    assert seen[-1] == 2


class TestMemory:
    """What makes a program another one at its next call is found; what does not is not."""

    @staticmethod
    def counting_closure():
        calls = iter(range(1000))
        return lambda x: next(calls)

    @staticmethod
    def counting_cell():
        calls = 0

        def program(x):
            nonlocal calls
            calls += 1

        return program

    @staticmethod
    def counting_itertools():
        calls = itertools.count()
        return lambda x: next(calls)

    @staticmethod
    def counting_generator():
        scales = (0.9**k for k in range(1000))
        return lambda x: next(scales)

    @staticmethod
    def counting_global():
        def program(x):
            CALLS.append(0)

        return program

    @staticmethod
    def counting_attribute():
        class Program(torch.nn.Module):
            calls = 0

            def forward(self, x):
                self.calls += 1

        return Program()

    @staticmethod
    def counting_callee():
        seen = []

        def inner(x):
            seen.append(0)

        return lambda x: [inner(x)]

    @pytest.mark.parametrize("make", ["closure", "cell", "itertools", "generator", "global", "attribute", "callee"])
    def test_a_count_of_calls(self, make):
        program = getattr(self, f"counting_{make}")()
        before = memory(program)
        assert memory(program) == before
        program(torch.ones(2))
        assert memory(program) != before

    def test_nothing_of_a_pair_of_the_suite_or_of_pyro(self):
        model, x = demo(FactorAnalysis)
        for build_guide in (lambda: build(model, Amortized, MeanField, x), lambda: autoguide.AutoNormal(model)):
            program = build_guide()
            with pyro.get_param_store().scope():
                program(x)
                before = memory(model, program)
                program(x)
                model(x)
                assert memory(model, program) == before

    def test_nothing_of_what_a_parameter_was_made_from(self):
        """It lies in the parameter's memory: an optimiser moves it."""

        class Guide(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.start = [torch.zeros(3)]
                self.loc = torch.nn.Parameter(self.start[0])

        guide = Guide()
        before, unaware = memory(guide, learned=[guide.loc]), memory(guide)
        with torch.no_grad():
            guide.loc.add_(1.0)
        assert memory(guide, learned=[guide.loc]) == before
        assert memory(guide) != unaware

    @pytest.mark.parametrize("name", ["AutoNormal", "AutoMultivariateNormal", "AutoDelta"])
    def test_autoguides_are_not_left_to_pyro(self, name):
        """They keep the values that their parameters were made from."""

        def model(x):
            h = pyro.sample("h", dist.Normal(torch.zeros(3), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(h, 1.0).to_event(1), obs=x)

        made = []

        class Watched(Auto):
            def __init__(self, problem):
                super().__init__(problem)
                made.append(self)

        fit(model, getattr(autoguide, name)(model), torch.ones(3), steps=20, engine=Watched)
        assert made[0].fits.instead is None


CALLS = []


def test_auto_leaves_a_program_that_counts_its_calls_to_pyro():
    """The trajectory is Eager's to the last bit, and so is the count."""

    def run(engine):
        calls = itertools.count()

        def model(x):
            h = pyro.sample("h", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(h, 0.9 ** next(calls)).expand(x.shape).to_event(1), obs=x)

        return fit(model, guide, torch.ones(3), steps=40, engine=engine).nelbo, next(calls)

    losses, calls = run(Eager)
    with pytest.warns(UserWarning, match="keeps state between calls, in `calls` of function"):
        ours, our_calls = run(Auto)
    assert torch.equal(losses, ours)
    assert calls == our_calls


GIVES_WAY = {
    "auto_spline_flow": "the size of a tensor depends on values",
    "own_generator": "keeps state between calls, in `generator`",
}
"""Programs that are not captured, and why; others may have control flow in Pyro or torch that depends on a value."""


class Interpreted(CompiledLoop):
    strategy = Strategy


@pytest.mark.slow
@pytest.mark.parametrize("engine", [Auto, Graph, Interpreted])
@pytest.mark.parametrize("program", [p for p in PROGRAMS if p.loss is Trace_ELBO and not p.kwargs], ids=lambda p: p.name)
def test_every_program_takes_pyros_trajectory_on_every_engine(program, engine):
    def run(chosen):
        with isolated(0):
            model, guide = program.make()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            done = fit(model, guide, program.args, steps=12, lr=0.02, objective=TraceELBO(), engine=chosen, seed=3)
        return done.nelbo, [str(w.message) for w in caught if " by Pyro alone " in str(w.message)]

    try:
        expected, _ = run(Eager)
    except (TypeError, ValueError):
        pytest.skip("fit refuses this program")
    losses, reasons = run(engine)
    torch.testing.assert_close(losses, expected, rtol=1e-4, atol=1e-4)
    assert reasons or program.name not in GIVES_WAY
    for reason in reasons:
        assert re.search(GIVES_WAY.get(program.name, r"\.py:\d+ \(.*value out of a tracing tensor"), reason), reason


@pytest.mark.parametrize("engine", FAST)
@pytest.mark.parametrize("name", ["subsampled_plate", "subsampled_local_latents"])
def test_rows_that_a_model_draws_are_part_of_the_step(engine, name):
    """Plain Pyro minibatches: the plate's permutation is drawn by every engine as by Pyro."""
    program = next(p for p in PROGRAMS if p.name == name)
    losses = []
    for chosen in (Eager, engine):
        model, guide = program.make()
        losses.append(fit(model, guide, program.args, steps=25, engine=chosen).nelbo)
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-5, atol=1e-5)
    assert len(set(losses[0].tolist())) == 25


@pytest.mark.parametrize("engine", FAST)
def test_parameters_without_entries(engine):
    def model(x):
        nothing = pyro.param("nothing", torch.zeros(0))
        h = pyro.sample("h", dist.Normal(nothing.sum(), 1.0))
        pyro.sample("x", dist.Normal(h, 1.0).expand(x.shape).to_event(1), obs=x)

    losses = [fit(model, guide, torch.ones(3), steps=25, engine=chosen).nelbo for chosen in (Eager, engine)]
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("engine", FAST)
def test_groups_of_parameters_take_one_step_each(engine):
    """As torch's own optimiser would: the second group is not stepped again with the first."""

    def model(x):
        h = pyro.sample("h", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(h, 1.0).expand(x.shape).to_event(1), obs=x)

    def two(x):
        pyro.sample("h", dist.Normal(pyro.param("a", torch.tensor(0.1)), pyro.param("b", torch.tensor(0.5)).abs()))

    def grouped(parameters, lr):
        first, second = parameters
        return torch.optim.SGD([{"params": [first]}, {"params": [second], "lr": lr / 2}], lr=lr)

    said = nullcontext() if engine is Graph else pytest.warns(UserWarning, match="several groups of parameters")
    x = torch.ones(3)
    with said:
        done = fit(model, two, x, steps=25, lr=0.01, optimiser=grouped, schedule=None, engine=engine)
    eager = fit(model, two, x, steps=25, lr=0.01, optimiser=grouped, schedule=None, engine=Eager)
    torch.testing.assert_close(done.nelbo, eager.nelbo, rtol=1e-5, atol=1e-5)
    one = fit(model, two, x, steps=1, lr=0.01, optimiser=grouped, schedule=None, engine=Eager).params["params"]
    half = fit(model, two, x, steps=1, lr=0.005, optimiser=torch.optim.SGD, schedule=None, engine=Eager).params["params"]
    torch.testing.assert_close(one["b"], half["b"])
