"""Programs that keep state between calls, wherever it is hidden: no engine returns another trajectory without a word.

`stateful.COUNTERS` has the hiding places inside a model; the other places are here.
"""

from __future__ import annotations

import itertools
import math
import time
import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from stateful import CHANGES, COUNTERS, program

import inference.engine.auto
from inference import fit
from inference.engine import Auto, CompiledLoop, Eager, Graph
from inference.engine.graphs.hidden_state import memory
from inference.engine.joint_loop import JointLoop
from inference.engine.random_steps import MAX_MEAN_GAP, RandomSteps
from inference.engine.state_watch import StateWatch
from inference.engine.strategy import Strategy
from inference.objectives import TraceELBO
from inference.stopping import When

X = torch.tensor([0.3, -1.2, 0.8])
STEPS = 40


class Interpreted(CompiledLoop):
    """The compiled loop without its compiler."""

    strategy = Strategy


@pytest.fixture(autouse=True)
def impatient(monkeypatch, tmp_path):
    """Auto captures as soon as it may, and finds no loop on disk."""
    monkeypatch.setattr(inference.engine.auto, "CAPTURE", 0)
    monkeypatch.setattr(inference.engine.auto, "MAX_SMALL_STEP", math.inf)
    monkeypatch.setenv("TAUT_CACHE", str(tmp_path))


def run(engine, make, **options):
    """The losses, final parameters and warnings of a fit of a fresh program."""
    model, guide = make()
    options = {"steps": STEPS, "lr": 0.02, **options}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        done = fit(model, guide, X, engine=engine, **options)
    return done.nelbo, done.params["params"], [str(warning.message) for warning in caught if warning.category is UserWarning]


def equal(found, expected):
    (losses, parameters, _), (true_losses, true_parameters, _) = found, expected
    same = torch.allclose(losses, true_losses, rtol=1e-5, atol=1e-5)
    return same and all(torch.allclose(parameters[name], p, rtol=1e-4, atol=1e-5) for name, p in true_parameters.items())


def said(found):
    return any(" run by Pyro alone" in text or " runs by Pyro alone" in text for text in found[2])


CASES = list(zip(COUNTERS, itertools.cycle(CHANGES), strict=False))
OTHERS = [case for case in itertools.product(COUNTERS, CHANGES) if case not in CASES]


class TestHidingPlaces:
    def by_auto(self, place, change):
        def make():
            return program(COUNTERS[place], CHANGES[change])

        expected, found = run(Eager, make), run(Auto, make)
        assert equal(found, expected), found[2]
        assert said(found)

    def test_are_many(self):
        assert len(COUNTERS) >= 60

    @pytest.mark.parametrize(("place", "change"), CASES)
    def test_of_a_count_of_calls_do_not_deceive_auto(self, place, change):
        self.by_auto(place, change)

    @pytest.mark.slow
    @pytest.mark.parametrize(("place", "change"), OTHERS)
    def test_of_every_kind_of_change(self, place, change):
        self.by_auto(place, change)

    @pytest.mark.slow
    @pytest.mark.parametrize("engine", [Graph, Interpreted])
    @pytest.mark.parametrize(("place", "change"), CASES)
    def test_do_not_deceive_the_other_engines(self, engine, place, change):
        def make():
            return program(COUNTERS[place], CHANGES[change])

        expected, found = run(Eager, make), run(engine, make)
        assert equal(found, expected), found[2]
        assert said(found)


@pytest.fixture
def blind(monkeypatch):
    """No search sees anything: comparisons with Pyro alone are left."""
    monkeypatch.setattr(StateWatch, "check", lambda self: None)


@pytest.mark.parametrize("engine", [Auto, Graph, Interpreted])
@pytest.mark.parametrize("change", ["drift", "alternate"])
def test_a_count_that_no_search_finds_is_found_by_repeating_a_step(blind, engine, change):
    assert said(run(engine, lambda: program(COUNTERS["closure"], CHANGES[change])))


def test_a_dependence_on_the_time_is_found():
    begin = time.perf_counter()

    def model(x):
        loc = pyro.sample("loc", dist.Normal(0.0, 2.0))
        pyro.sample("x", dist.Normal(loc + time.perf_counter() - begin, 1.0).expand(x.shape).to_event(1), obs=x)

    assert said(run(Auto, lambda: (model, guide)))


def plain(x):
    loc = pyro.sample("loc", dist.Normal(0.0, 2.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(loc, 1.0), obs=x)


def guide(x):
    m = pyro.param("m", torch.tensor(0.1))
    s = pyro.param("s", torch.tensor(0.5), constraint=dist.constraints.positive)
    pyro.sample("loc", dist.Normal(m, s))


class Annealed:
    """A model with a temperature that something else than the model changes."""

    beta = 0.1

    def __call__(self, x):
        loc = pyro.sample("loc", dist.Normal(0.0, 2.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(loc, 1.0 + self.beta), obs=x)


class Slowing(torch.optim.Adam):
    """Its own step lowers the rate."""

    count = 0

    def step(self, closure=None):
        self.count += 1
        for group in self.param_groups:
            group["lr"] = 0.05 / (1 + self.count)
        return super().step(closure)


@pytest.mark.parametrize("engine", [Auto, Graph, pytest.param(Interpreted, marks=pytest.mark.slow)])
class TestOtherPlaces:
    """What changes the program, or the steps, from outside the model."""

    def same(self, engine, make, options=dict, said_so=False):
        expected, found = run(Eager, make, **options()), run(engine, make, **options())
        assert equal(found, expected), found[2]
        assert said(found) or not said_so

    def test_the_guide(self, engine):
        def make():
            calls = itertools.count()

            def counting(x):
                m = pyro.param("m", torch.tensor(0.1))
                pyro.sample("loc", dist.Normal(m, 1.0 + 0.1 * (next(calls) % 2)))

            return plain, counting

        self.same(engine, make, said_so=True)

    def test_the_transform(self, engine):
        def options():
            calls = itertools.count()
            return {"transform": lambda x: x + 0.01 * next(calls)}

        self.same(engine, lambda: (plain, guide), options, said_so=True)

    def test_the_objective(self, engine):
        class Weighted(TraceELBO):
            calls = 0

            def __call__(self, *args, **kwargs):
                Weighted.calls += 1
                value, surrogate = super().__call__(*args, **kwargs)
                return type(super().__call__(*args, **kwargs))(value, surrogate * (1 + 0.01 * Weighted.calls))

        def options():
            Weighted.calls = 0
            return {"objective": Weighted()}

        self.same(engine, lambda: (plain, guide), options, said_so=True)

    def test_the_step_of_the_optimiser(self, engine):
        self.same(engine, lambda: (plain, guide), lambda: {"optimiser": Slowing, "schedule": None})

    def test_a_hook_of_the_optimiser(self, engine):
        def hooked(parameters, lr):
            adam, calls = torch.optim.Adam(parameters, lr=lr), itertools.count()

            def slow(*_):
                adam.param_groups[0]["lr"] = 0.05 / (1 + next(calls))

            adam.register_step_post_hook(slow)
            return adam

        self.same(engine, lambda: (plain, guide), lambda: {"optimiser": hooked, "schedule": None})

    def test_a_schedule_that_counts(self, engine):
        def options():
            calls = itertools.count()
            return {"schedule": lambda adam, _: torch.optim.lr_scheduler.LambdaLR(adam, lambda _: 1 / (1 + next(calls) % 3))}

        self.same(engine, lambda: (plain, guide), options)

    def test_a_schedule_that_anneals_the_model(self, engine):
        model = Annealed()

        def options():
            model.beta = 0.1

            def anneal(step):
                model.beta = 0.01 * step
                return 1.0

            return {"schedule": lambda adam, _: torch.optim.lr_scheduler.LambdaLR(adam, anneal)}

        self.same(engine, lambda: (model, guide), options, said_so=True)

    @pytest.mark.parametrize("every", [10, 13])
    def test_a_rule_that_anneals_the_model(self, engine, every):
        model = Annealed()

        def options():
            model.beta = 0.1

            def anneal(run):
                model.beta = 0.01 * run.steps

            return {"stop": When(anneal, every=every)}

        self.same(engine, lambda: (model, guide), options, said_so=True)


class TestComparisons:
    """A captured step that is wrong, at whatever steps, is found or known to be found with a known probability."""

    def faulty(self, monkeypatch, first, last):
        def wrong(self, members, rates, rows, run=JointLoop.advance):
            problem = members[0].problem
            taken = int(problem.optimiser.state[problem.parameters[0]]["step"])
            return run(self, members, [r * (1 + 0.5 * (first <= taken + k < last)) for k, r in enumerate(rates)], rows)

        monkeypatch.setattr(JointLoop, "advance", wrong)

    @pytest.mark.parametrize("first", [10, 25, 38])
    def test_a_fault_that_stays_is_redone(self, monkeypatch, first):
        """Nothing of the steps after it is returned, however few they are."""
        expected = run(Eager, lambda: (plain, guide))
        self.faulty(monkeypatch, first, math.inf)
        found = run(Interpreted, lambda: (plain, guide))
        assert said(found)
        assert equal(found, expected)

    @pytest.mark.parametrize("engine", [Graph, Interpreted])
    def test_a_right_program_is_not_accused(self, engine):
        expected, found = run(Eager, lambda: (plain, guide)), run(engine, lambda: (plain, guide))
        assert equal(found, expected)
        assert not found[2]

    @pytest.mark.parametrize("length", [100, 1000, 3000])
    def test_miss_a_fault_that_vanishes_as_rarely_as_is_said(self, length):
        """docs/engine.md: (1 - 1/1000)^k for k steps, late in a fit."""
        first, tries, missed = 5000, 2000, 0
        for seed in range(tries):
            steps, due = RandomSteps(seed), 0
            while due < first:
                due = steps.after(due + 1)
            missed += due >= first + length
        bound = (1 - 1 / MAX_MEAN_GAP) ** length
        error = math.sqrt(bound * (1 - bound) / tries)
        assert abs(missed / tries - bound) < 5 * error

    def test_are_frequent_at_the_beginning(self):
        """A few more than at powers of four, of which each took three steps and not one."""
        counts = []
        for seed in range(200):
            steps, due, count = RandomSteps(seed), 1, 0
            while due < 1000:
                due, count = steps.after(due + 1), count + 1
            counts.append(count)
        assert 6 < sum(counts) / len(counts) < 11

    @pytest.mark.slow
    def test_miss_a_fault_early_in_a_fit_more_rarely(self, monkeypatch):
        """A fault of 20 steps from step 15 on is missed with a probability that the gaps give; it is never returned if it
        is found."""
        expected, missed, tries = run(Eager, lambda: (plain, guide)), 0, 40
        self.faulty(monkeypatch, 15, 35)
        for seed in range(tries):
            reference = run(Eager, lambda: (plain, guide), seed=seed)
            found = run(Interpreted, lambda: (plain, guide), seed=seed)
            if said(found):
                assert equal(found, reference)
            else:
                missed += 1
        assert expected
        assert missed / tries < (1 - 1 / 40) ** 20 + 5 * math.sqrt(0.24 / tries)


def test_a_search_reads_what_it_finds_and_leaves_it_alone():
    """Iterators are not moved by looking at them, and a second look finds the same."""
    numbers, table = iter(range(10)), torch.zeros(3)
    cycle, generator = itertools.cycle([1, 2]), (n for n in range(3))

    def model(x):
        return next(numbers), table, next(cycle), next(generator)

    before = memory(model)
    assert memory(model) == before
    assert model(X)[::2] == (0, 1)
    assert memory(model) != before
