"""The compiled loop: the trajectory of Pyro, whatever the optimiser; on disk once, and never the wrong one."""

from __future__ import annotations

import dataclasses
import errno
import itertools
import math
import os
import random
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from typing import ClassVar

import pyro
import pyro.distributions as dist
import pytest
import torch
from problems import build, demo
from pyro.nn import PyroModule

import inference.engine.auto
from guides import Amortized, Bernoulli, FullRank, Global, Local, MeanField
from inference import NonFiniteLossError, fit, fit_many, objectives
from inference.engine import Auto, CompiledLoop, Eager, Graph, joint_loop
from inference.engine.auto import Automatic
from inference.engine.comparison import agree
from inference.engine.errors import BuildError
from inference.engine.graphs.loop_body import Packing
from inference.engine.inductor import cache
from inference.engine.inductor.background import Background, is_under_way
from inference.engine.joint_loop import JointLoop
from inference.engine.simultaneous import SimultaneousFits
from inference.engine.strategy import Strategy
from inference.optimisers import DoG
from models import BinaryVAE, FactorAnalysis, GaussianMixture, LinearRegression, LocalGaussian


class Interpreted(CompiledLoop):
    """The loop without the compiler, which does the same between blocks."""

    loops: ClassVar = []

    class Recorded(Strategy):
        def prepared(self, loop, example):
            Interpreted.loops.append((loop, example))
            return loop

    strategy = Recorded


def engine_with(strategy_class):
    """Auto with another strategy."""
    return type("Other", (Auto,), {"strategy": strategy_class})


@pytest.fixture(autouse=True)
def empty_cache(monkeypatch, tmp_path):
    monkeypatch.setattr(inference.engine.auto, "CAPTURE", 0)
    monkeypatch.setattr(inference.engine.auto, "MAX_SMALL_STEP", math.inf)
    monkeypatch.setenv("TAUT_CACHE", str(tmp_path))
    Interpreted.loops.clear()
    return tmp_path


def small(seed=1):
    torch.manual_seed(seed)
    model, x = demo(LocalGaussian)
    return model, build(model, Local, MeanField, x), x


def run(engine, make=small, **options):
    model, guide, x = make()
    done = fit(model, guide, x, engine=engine, **{"steps": 60, "lr": 0.02, **options})
    return done.nelbo, torch.cat([p.detach().flatten() for p in guide.parameters()])


class Uneven:
    """A float32 program with gradients of some 100, of 1e-3 and of mere rounding, captured in another version than it is."""

    def __init__(self):
        self.swapped = None

    def model(self, x):
        w = pyro.param("w", torch.zeros(3))
        a, b, c = torch.tensor([0.3, 0.6, 0.7])
        rounding = ((a + b) + c if self.swapped == "the order of a sum" else a + (b + c)) - 1.6
        small = -1e-3 if self.swapped == "a small coefficient" else 1e-3
        large = 50.05 if self.swapped == "a large coefficient" else 50.0
        pyro.factor("terms", -large * (w[0] - 1).square() + small * w[1] + rounding * w[2])
        pyro.sample("x", dist.Normal(pyro.sample("h", dist.Normal(0.0, 1.0)), 1.0), obs=x)

    def guide(self, x):
        pyro.sample("h", dist.Normal(0.5 * x, 0.7))

    @classmethod
    def run(cls, monkeypatch, swapped, fits):
        """Fits it with a loop of the version with `swapped`, and returns the engine's state machine."""
        program, engines = cls(), []

        def prepare(self, run=SimultaneousFits._prepare):
            engines.append(self)
            program.swapped = swapped
            try:
                return run(self)
            finally:
                program.swapped = None

        monkeypatch.setattr(SimultaneousFits, "_prepare", prepare)
        pairs = [(program.model, program.guide)] * fits
        fit_many(pairs, torch.tensor(1.0), seeds=range(fits), engine=Interpreted, steps=40, lr=0.02)
        return engines[0]


def assert_same(found, expected):
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


def amortized(seed=1):
    torch.manual_seed(seed)
    model, x = demo(FactorAnalysis)
    return model, build(model, Amortized, FullRank, x), x


class TestSteps:
    @pytest.mark.parametrize(
        "optimiser",
        [
            torch.optim.Adam,
            torch.optim.AdamW,
            torch.optim.Adamax,
            torch.optim.NAdam,
            torch.optim.RMSprop,
            torch.optim.Adadelta,
            torch.optim.SGD,
            lambda p, lr: torch.optim.SGD(p, lr=lr / 100, momentum=0.9),
            lambda p, lr: torch.optim.Adam(p, lr=lr, fused=True),
            lambda p, lr: DoG(p),
        ],
        ids=["Adam", "AdamW", "Adamax", "NAdam", "RMSprop", "Adadelta", "SGD", "momentum", "fused", "DoG"],
    )
    def test_of_any_optimiser(self, optimiser):
        options = {"optimiser": optimiser, "schedule": None}
        assert_same(run(Interpreted, **options), run(Eager, **options))
        assert Interpreted.loops

    def test_of_an_optimiser_that_reads_numbers_are_left_to_graph(self):
        options = {"optimiser": torch.optim.Adagrad, "schedule": None}
        with pytest.warns(UserWarning, match="the step of Adagrad cannot be captured"):
            found = run(Interpreted, **options)
        assert_same(found, run(Eager, **options))

    def test_of_minibatches_with_a_smaller_last_one(self):
        assert_same(run(Interpreted, amortized, batch_size=7), run(Eager, amortized, batch_size=7))
        assert Interpreted.loops

    def test_of_a_transform_that_draws(self):
        options = {"batch_size": 7, "transform": lambda x: x + 0.1 * torch.randn_like(x)}
        assert_same(run(Interpreted, amortized, **options), run(Eager, amortized, **options))
        assert Interpreted.loops

    def test_work_out_once_what_is_one_number_for_all(self):
        """Adam's corrections of its bias come from memory; Inductor would repeat their powers for every parameter."""
        run(Interpreted, steps=3)
        graph = Interpreted.loops[0][0].body.body.graph
        powers = [node for node in graph.nodes if node.target is torch.ops.aten.pow.Scalar]
        assert powers
        barrier, reached = torch.ops.aten.as_strided.default, set()
        front = list(powers)
        while front:
            node = front.pop()
            if node not in reached and node.target is not barrier:
                reached.add(node)
                front.extend(node.users)
        sizes = {node.meta["tensor_meta"].shape.numel() for node in reached if "tensor_meta" in node.meta}
        assert sizes == {1}

    def test_that_are_wrong_are_found(self, monkeypatch):
        """The comparison has power: a loop with another learning rate is refused, and the trajectory stays Pyro's."""

        def wrong(self, members, rates, rows, run=JointLoop.advance):
            return run(self, members, [1.01 * rate for rate in rates], rows)

        monkeypatch.setattr(JointLoop, "advance", wrong)
        with pytest.warns(UserWarning, match="differs in steps 1 to 2"):
            found = run(Interpreted)
        assert_same(found, run(Eager))

    def test_that_are_wrong_from_the_second_on_are_found(self, monkeypatch):
        """One step of a loop says nothing of what it hands on to the next."""

        def wrong(self, members, rates, rows, run=JointLoop.advance):
            return run(self, members, [rates[0], *(1.01 * rate for rate in rates[1:])], rows)

        monkeypatch.setattr(JointLoop, "advance", wrong)
        with pytest.warns(UserWarning, match="differs in steps 1 to 2"):
            found = run(Interpreted)
        assert_same(found, run(Eager))

    def test_that_are_wrong_in_a_small_parameter_are_found(self):
        """Each tensor is compared by itself: the large second moments of Adam hide nothing."""
        small_one, large = torch.tensor([1.0]), torch.tensor([1e6])
        assert not agree(1.05 * small_one, small_one)
        packing = Packing([small_one, large])
        (wrong,), (right,) = packing.pack([1.05 * small_one, large]), packing.pack([small_one, large])
        assert agree(wrong, right)
        assert not all(map(agree, packing.unpack([wrong]), packing.unpack([right])))

    @pytest.mark.parametrize("fits", [1, 2])
    def test_that_are_made_of_rounding_alone_are_not_wrong(self, monkeypatch, fits):
        """Where the sum that is a gradient should be zero, another order of it is another step of Adam's, of full size."""
        loop = Uneven.run(monkeypatch, "the order of a sum", fits)
        assert len(loop.members) == fits
        assert Interpreted.loops
        assert loop.instead is None

    @pytest.mark.parametrize("swapped", ["a small coefficient", "a large coefficient"])
    @pytest.mark.parametrize("fits", [1, 2])
    def test_that_are_wrong_beside_rounding_are_found(self, monkeypatch, swapped, fits):
        """Small: 1e-5 of the largest gradient, of which Adam's moments tell nothing; large: by one part in a thousand."""
        with pytest.warns(UserWarning, match="differs in steps"):
            loop = Uneven.run(monkeypatch, swapped, fits)
        assert [type(engine) for engine in loop.instead] == ([Eager] if fits == 1 else [Interpreted] * fits)

    @pytest.mark.parametrize("engine", [Interpreted, Auto])
    def test_of_a_schedule_that_changes_more_than_the_rate(self, engine):
        """OneCycleLR moves Adam's betas: the step is left to `Graph`, and the trajectory stays Pyro's."""
        options = {"schedule": lambda adam, steps: torch.optim.lr_scheduler.OneCycleLR(adam, 0.1, total_steps=steps + 1)}
        with pytest.warns(UserWarning, match="changes more than the learning rate|settings have changed"):
            found = run(engine, steps=40, **options)
        assert_same(found, run(Eager, steps=40, **options))

    def test_that_cannot_factorise_a_matrix_say_so(self):
        """Compiled code raises nothing by itself, and a partial factor is finite."""

        def model(x):
            h = pyro.sample("h", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(h, 1.0).to_event(1), obs=x)

        def guide(x):
            a = pyro.param("a", torch.tensor(0.5))
            matrix = torch.eye(2) + a * (torch.ones(2, 2) - torch.eye(2))
            factor = torch.linalg.cholesky(matrix.detach())
            pyro.sample("h", dist.Normal(4 * a + 0 * factor.diagonal(), 1.0).to_event(1))

        errors = []
        for engine in (Eager, Graph, Interpreted):
            with pytest.raises(NonFiniteLossError) as caught:
                fit(model, guide, torch.full((2,), 100.0), steps=300, lr=0.02, engine=engine, schedule=None)
            assert "a matrix could not be factorised" in str(caught.value)
            errors.append(caught.value.step)
        assert len(set(errors)) == 1
        assert errors[0] > 5

    def test_that_meet_new_parameters_learn_them(self):
        def make():
            calls = itertools.count()

            def guide(x):
                loc = pyro.param("loc", torch.tensor(0.1))
                scale = pyro.param("scale", torch.tensor(1.0)) if next(calls) > 10 else torch.tensor(1.0)
                pyro.sample("h", dist.Normal(loc, scale.abs()))

            return guide

        def model(x):
            h = pyro.sample("h", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(h, 1.0).expand(x.shape).to_event(1), obs=x)

        losses = [fit(model, make(), torch.ones(3), steps=60, engine=Eager).nelbo]
        with pytest.warns(UserWarning, match="keeps state between calls, in `calls`"):
            losses.append(fit(model, make(), torch.ones(3), steps=60, engine=Auto).nelbo)
        assert torch.equal(*losses)

    def test_of_a_transform_that_draws_from_python(self):
        """What is drawn elsewhere than from torch cannot be captured; Auto sees it."""

        def run_with(engine):
            generator = random.getstate()
            model, guide, x = amortized()
            done = fit(model, guide, x, steps=40, engine=engine, transform=lambda x: x if random.random() < 0.9 else -x)
            assert random.getstate() == generator
            return done.nelbo

        with pytest.warns(UserWarning, match="random generator"):
            found = run_with(Auto)
        assert torch.equal(found, run_with(Eager))

    def test_that_stop_being_finite_name_the_step(self):
        def model(x):
            h = pyro.sample("h", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(h, 1.0).expand(x.shape).to_event(1), obs=x)

        def guide(x):
            loc = pyro.param("loc", torch.tensor(0.5))
            pyro.sample("h", dist.Normal(loc, torch.sqrt(0.9 - loc)))

        errors = []
        for engine in (Eager, Interpreted):
            with pytest.raises(NonFiniteLossError) as caught:
                fit(model, guide, torch.full((50,), 3.0), steps=500, lr=0.01, engine=engine, schedule=None)
            errors.append(caught.value)
        assert errors[0].step == errors[1].step > 16
        assert str(errors[0]) == str(errors[1])

    def test_that_are_interrupted_leave_the_last_block(self, monkeypatch):
        """Ctrl-C is noticed between blocks, which take a tenth of a second; the parameters are those of the last."""
        blocks = []

        def interrupted(self, members, rates, rows, run=JointLoop.advance):
            if len(blocks) == 5:
                raise KeyboardInterrupt
            found = run(self, members, rates, rows)
            blocks.append(len(rates))
            return found

        monkeypatch.setattr(JointLoop, "advance", interrupted)
        model, guide, x = small()
        with pytest.raises(KeyboardInterrupt):
            fit(model, guide, x, steps=1000, engine=Interpreted, schedule=None)
        left = torch.cat([p.detach().flatten() for p in guide.parameters()])
        _, expected = run(Eager, steps=1 + sum(blocks), lr=0.01, schedule=None)
        torch.testing.assert_close(left, expected, rtol=1e-9, atol=1e-9)

    def test_leave_threads_and_random_state_alone(self, monkeypatch):
        torch.manual_seed(3)
        monkeypatch.setattr(joint_loop, "fewest_for", lambda step: 2)
        before = torch.get_rng_state(), torch.get_num_threads(), sys.getrecursionlimit()
        model, x = demo(LinearRegression)
        guide = build(model, Global, FullRank, x)
        torch.set_rng_state(before[0])
        fit(model, guide, x, steps=40, engine=Interpreted)
        assert torch.equal(torch.get_rng_state(), before[0])
        assert (torch.get_num_threads(), sys.getrecursionlimit()) == before[1:]

    def test_run_one_operation_after_the_other_without_a_compiler(self, monkeypatch):
        def fails(*args, **kwargs):
            raise BuildError("the step could not be compiled (InvalidCxxCompiler: no compiler)")

        monkeypatch.setattr(cache, "build", fails)
        with pytest.warns(UserWarning, match="without compiled code, since the step could not be compiled"):
            found = run(CompiledLoop)
        assert_same(found, run(Eager))


OBJECTIVES = [cls for cls in map(vars(objectives).get, objectives.__all__) if dataclasses.is_dataclass(cls)]


def discrete(seed=1):
    torch.manual_seed(seed)
    model, x = demo(BinaryVAE)
    return model, build(model, Amortized, Bernoulli, x), x


class Assignments(PyroModule):
    """A categorical q of its own for each datum."""

    def __init__(self, n, k):
        super().__init__()
        self.logits = torch.nn.Parameter(torch.zeros(n, k, dtype=torch.float64))

    def q(self, x, index=None):
        return dist.Categorical(logits=self.logits)

    def forward(self, x, index=None, size=None):
        with pyro.plate("data", len(x)):
            pyro.sample("h", self.q(x))


def enumerable(seed=1):
    model, x = demo(GaussianMixture)
    return model, Assignments(len(x), 3), x


class TestObjectives:
    @pytest.mark.parametrize("objective", OBJECTIVES)
    def test_every_one_with_the_pairs_that_can_use_it(self, objective):
        options = {"objective": objective(), "steps": 20, "lr": 0.01}
        used = 0
        for make in (small, amortized, discrete, enumerable):
            try:
                expected = run(Eager, make, **options)
            except (TypeError, ValueError):
                continue
            used += 1
            Interpreted.loops.clear()
            # Pyro's contraction looks at the numbers, so that this one cannot be captured.
            cannot = pytest.warns(UserWarning, match="the captured step cannot be used")
            with cannot if objective is objectives.Enumerated else nullcontext():
                assert_same(run(Interpreted, make, **options), expected)
            assert bool(Interpreted.loops) == (objective is not objectives.Enumerated)
        assert used, "no pair can use it"


class TestPlaceOnDisk:
    """An artefact is found again for the same program, and for no other."""

    def entry(self, make):
        Interpreted.loops.clear()
        run(Interpreted, make, steps=3)
        ready, example = Interpreted.loops[-1]
        return cache.entry(ready.body, example, threads=ready.threads)

    def gaussian(self, scale=1.0, size=20, dtype=torch.float64):
        def model(x):
            h = pyro.sample("h", dist.Normal(torch.zeros((), dtype=dtype), 1.0))
            pyro.sample("x", dist.Normal(h, scale).expand(x.shape).to_event(1), obs=x)

        guide = pyro.infer.autoguide.AutoNormal(model)
        x = torch.linspace(0, 1, size, dtype=dtype)
        with pyro.get_param_store().scope():
            guide(x)
        return model, guide.to(dtype), x

    def test_is_the_same_for_the_same_program(self):
        assert self.entry(self.gaussian) == self.entry(self.gaussian)

    @pytest.mark.parametrize("change", [{"scale": 2.0}, {"size": 21}, {"dtype": torch.float32}])
    def test_is_another_for_another_program(self, change):
        assert self.entry(self.gaussian) != self.entry(lambda: self.gaussian(**change))

    def test_is_the_same_in_another_process(self):
        code = "import sys; sys.path.insert(0, 'tests')\nfrom test_compiled import *\nprint(TestPlaceOnDisk().entry(small))"
        found = subprocess.run(
            [sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=Path(__file__).parents[1]
        )
        assert Path(found.stdout.strip()) == self.entry(small)


def test_old_entries_make_room(monkeypatch, empty_cache):
    monkeypatch.setattr(cache, "MAX_BYTES", 1500)

    def build_nothing(loop, inputs, folder, *, threads):
        (folder / "loop.so").write_bytes(bytes(600))

    monkeypatch.setattr(cache, "build", build_nothing)
    for name in ("first", "second", "third"):
        cache.make(empty_cache / name, None, [], threads=1)
        time.sleep(0.02)
    assert sorted(path.name for path in empty_cache.iterdir()) == ["second", "third"]


def test_a_compiled_fit_takes_pyros_trajectory_and_the_next_finds_it_on_disk(monkeypatch):
    expected = run(Eager, steps=300)
    assert_same(run(CompiledLoop, steps=300), expected)

    def fails(*args, **kwargs):
        raise AssertionError("compiled again")

    monkeypatch.setattr(cache, "build", fails)
    assert_same(run(CompiledLoop, steps=300), expected)


@pytest.mark.slow
@pytest.mark.parametrize("kept", [None, 0, 5000])
def test_a_torn_entry_is_built_anew(kept, empty_cache):
    expected = run(CompiledLoop)
    (library,) = empty_cache.glob("*/loop.so")
    content = library.read_bytes()
    # A file of its own, since this process has the old one in its memory.
    library.unlink()
    if kept is not None:
        library.write_bytes(content[:kept])
    assert_same(run(CompiledLoop), expected)
    assert library.stat().st_size == len(content)


@pytest.mark.slow
def test_auto_changes_to_compiled_code_in_the_middle_of_a_fit(monkeypatch, empty_cache):
    monkeypatch.setattr(inference.engine.auto, "COMPILATION", 0.0)
    changes = []

    class Watched(Automatic):
        def changed(self, loop, taken, seconds):
            found = super().changed(loop, taken, seconds)
            if self._building is not None and self._wanted is not None:
                while not self._building.finished:
                    time.sleep(0.1)
            elif self._building is not None and not changes:
                changes.append(taken)
            return found

    expected = run(Eager, steps=3000)
    assert_same(run(engine_with(Watched), steps=3000), expected)
    assert list(empty_cache.glob("*/loop.so"))
    assert 0 < changes[0] < 3000
    assert_same(run(Auto, steps=3000), expected)


@pytest.mark.slow
def test_what_was_compiled_before_is_captured_at_once(monkeypatch, empty_cache):
    """A short fit of a large model would run by Pyro; its like on disk is worth the capture."""
    monkeypatch.setattr(inference.engine.auto, "MAX_SMALL_STEP", 0.0)
    steps = []

    class Watched(Automatic):
        def by_pyro(self, taken, step):
            steps.append(taken)
            return super().by_pyro(taken, step)

    expected = run(Eager, steps=60)
    assert_same(run(engine_with(Watched), steps=60), expected)
    assert len(steps) == 60
    run(CompiledLoop, steps=3)
    steps.clear()
    assert_same(run(engine_with(Watched), steps=60), expected)
    assert len(steps) == inference.engine.auto.MIN_TIMED
    assert not cache.knows("known-other")


@pytest.mark.slow
def test_a_build_that_fails_in_the_background_is_said_and_the_fit_goes_on(monkeypatch):
    monkeypatch.setattr(inference.engine.auto, "COMPILATION", 0.0)
    monkeypatch.setenv("CXX", "no-such-compiler")

    class Patient(Automatic):
        def changed(self, loop, taken, seconds):
            while self._building is not None and not self._building.finished:
                time.sleep(0.1)
            return super().changed(loop, taken, seconds)

    expected = run(Eager, steps=300)
    with pytest.warns(UserWarning, match="without compiled code, since the step could not be compiled .*no-such-compiler"):
        assert_same(run(engine_with(Patient), steps=300), expected)


def test_without_a_second_process_the_captured_step_keeps_its_threads(monkeypatch):
    monkeypatch.setattr(inference.engine.auto, "COMPILATION", 0.0)
    monkeypatch.setattr(inference.engine.auto, "MIN_TIMED", 10**6)  # never left for Pyro

    def refused(*_, **__):
        raise OSError("no more processes")

    monkeypatch.setattr(inference.engine.auto, "Background", refused)
    seen = set()

    class Threaded(Automatic):
        def captures(self, taken):
            return taken > 3

        def prepared(self, loop, example):
            return super().prepared(loop._replace(threads=2), example)

        def changed(self, loop, taken, seconds):
            if self._wanted is None:
                seen.add(loop.threads)
            return super().changed(loop, taken, seconds)

    expected = run(Eager, steps=100)
    assert_same(run(engine_with(Threaded), steps=100), expected)
    assert seen == {2}


@pytest.mark.slow
def test_many_fits_order_a_loop_once():
    run(Interpreted, steps=3)
    ready, example = Interpreted.loops[0]
    entry = cache.entry(ready.body, example, threads=1)
    first = Background(entry, ready.body, example, threads=1)
    ordered = entry.with_suffix(".order").stat().st_mtime_ns
    second = Background(entry, ready.body, example, threads=1)
    assert entry.with_suffix(".order").stat().st_mtime_ns == ordered
    while not (first.finished or second.finished):
        time.sleep(0.1)
    assert first.finished
    assert second.finished
    assert cache.find(entry, "known-test") is not None


@pytest.mark.slow
def test_random_operations_that_depend_on_parameters():
    """Gamma and Beta draws are implicitly reparameterised: they stay in the loop."""

    def model(x):
        rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
        share = pyro.sample("share", dist.Beta(2.0, 2.0))
        pyro.sample("x", dist.Normal(rate * share, 1.0).expand(x.shape).to_event(1), obs=x)

    def guide(x):
        a = pyro.param("a", torch.tensor(2.0), constraint=dist.constraints.positive)
        b = pyro.param("b", torch.tensor(3.0), constraint=dist.constraints.positive)
        pyro.sample("rate", dist.Gamma(a, b))
        pyro.sample("share", dist.Beta(a, b))

    losses = [fit(model, guide, torch.ones(5), steps=40, engine=engine).nelbo for engine in (Eager, CompiledLoop)]
    torch.testing.assert_close(*losses, rtol=1e-4, atol=1e-4)


class TestCacheFaults:
    """A fault on disk costs a compilation, and is never loaded. `benchmarks/faults.py` injects many more."""

    @pytest.fixture
    def cached(self, monkeypatch, empty_cache):
        def build_stub(loop, inputs, folder, *, threads):
            (folder / "loop.so").write_bytes(b"library")

        monkeypatch.setattr(cache, "build", build_stub)
        monkeypatch.setattr(cache, "load", lambda folder: (folder / "loop.so").read_bytes())
        cache._loaded.cache_clear()
        cache.make(empty_cache / "entry", None, [], threads=1)
        yield empty_cache / "entry"
        cache._loaded.cache_clear()

    def healed(self, entry):
        assert cache.find(entry, "known") is None
        cache.make(entry, None, [], threads=1)
        assert cache.find(entry, "known") == b"library"

    def test_a_checksum_that_is_no_text(self, cached):
        (cached / "checksum").write_bytes(b"\xff\xfe\x80")
        self.healed(cached)

    @pytest.mark.parametrize("kind", ["file", "dangling link", "folder"])
    def test_an_entry_that_is_something_else(self, cached, kind):
        cache.discard(cached)
        {"file": cached.touch, "folder": cached.mkdir, "dangling link": lambda: cached.symlink_to("nowhere")}[kind]()
        self.healed(cached)

    @pytest.mark.parametrize("which", ["entry", "cache"])
    def test_a_folder_that_others_can_write_is_not_trusted(self, cached, which):
        folder = cached if which == "entry" else cached.parent
        folder.chmod(0o777)
        assert cache.find(cached, "known") is None
        if which == "cache":
            with pytest.raises(BuildError, match="other users can write"):
                cache.make(cached, None, [], threads=1)
            folder.chmod(0o700)
        else:
            self.healed(cached)

    def test_what_killed_processes_left_is_removed_by_age(self, cached):
        old, new = (cached.with_name(f"building-{name}") for name in ("old", "new"))
        for folder in (old, new):
            (folder / "loop").mkdir(parents=True)
        long_ago = time.time() - 2 * cache.MAX_BUILDING_AGE
        os.utime(old, (long_ago, long_ago))
        cache.make(cached.with_name("other"), None, [], threads=1)
        assert not old.exists()
        assert new.exists()

    @pytest.mark.parametrize("age", [-1e6, 1e6])
    def test_an_order_of_a_dead_process_blocks_nobody(self, cached, age):
        order = cached.with_suffix(".order")
        order.touch()
        assert is_under_way(order)
        os.utime(order, (time.time() - age,) * 2)
        assert not is_under_way(order)


@pytest.mark.slow
def test_a_cache_on_another_file_system_than_temporary_files(monkeypatch, empty_cache):
    """The library is moved there, not renamed."""

    def across(source, target, rename=os.rename):
        if str(empty_cache) in str(target) and str(empty_cache) not in str(source):
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        rename(source, target)

    monkeypatch.setattr(os, "rename", across)
    expected = run(Eager, steps=40)
    assert_same(run(CompiledLoop, steps=40), expected)
    assert list(empty_cache.glob("*/loop.so"))


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["Graph", "CompiledLoop"])
def test_memory_is_bounded_over_many_fits(engine):
    code = f"""
import gc, sys, torch
sys.path.insert(0, "tests")
from test_compiled import small
from inference import fit
from inference.engine import {engine}

def megabytes():
    gc.collect()
    return int(open("/proc/self/statm").read().split()[1]) * 4096 / 2**20

def fits(count):
    for k in range(count):
        model, guide, x = small()
        fit(model, guide, x, steps=20, engine={engine})

fits(30)
before = megabytes()
fits(100)
print(megabytes() - before)
"""
    found = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=Path(__file__).parents[1]
    )
    assert float(found.stdout) < 6.0
