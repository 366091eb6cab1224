"""Draws that are mapped in batches have the densities that Pyro's own traces have, and no others."""

from __future__ import annotations

import random
import time
import warnings

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from programs import PROGRAMS
from pyro import poutine
from pyro.infer.autoguide import AutoDiagonalNormal, AutoMultivariateNormal, AutoNormal

from guides import FullRank, Global, MeanField
from inference import elbo
from inference.programs.draws import draw_all, draw_chunks
from inference.programs.isolation import isolated
from inference.programs.log_joint import LogJoint
from inference.programs.packed_scores import PackedScores

X = torch.tensor([0.3, -1.2, 0.8, 1.9, 0.1, 2.2], dtype=torch.float64)
SLOW = "guide and model are called once for each draw"
NOT_MAPPED = {"random_number_of_sites"}
"""Programs that vmap cannot take."""
SINGLE = {"sparse_regression", "sparse_gaussian_process", "sparse_gaussian_process_regression", "own_generator"}
"""Programs with float32 data of their own."""
NOISY = {"random_number_of_sites", "subsampled_plate", "subsampled_local_latents", "own_generator"}
"""Programs whose densities are not a function of the draws alone."""


@pytest.fixture(autouse=True)
def in_float64():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


def joint(found):
    return (found.total.log_likelihood + found.total.log_prior, found.total.log_q)


def doubled(args):
    return tuple(a.double() if isinstance(a, torch.Tensor) and a.is_floating_point() else a for a in args)


def regression(table, y):
    w = pyro.sample("w", dist.Normal(torch.zeros(table.shape[1]), 1.0).to_event(1))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(table @ w, 0.5), obs=y)


def regression_guide(table, y):
    m = pyro.param("m", torch.zeros(table.shape[1]))
    pyro.sample("w", dist.Normal(m, 0.1).to_event(1))


def test_draws_of_a_regression_are_scored_in_batches():
    torch.manual_seed(0)
    table = torch.randn(2000, 50)
    y = table @ torch.randn(50)
    with isolated(0):
        begin = time.process_time()
        found = draw_all(regression, regression_guide, (table, y), draws=10_000)
        seconds = time.process_time() - begin
    w = found.h["w"]
    log_p = dist.Normal(0.0, 1.0).log_prob(w).sum(-1)
    expected = torch.stack([dist.Normal(table @ v, 0.5).log_prob(y).sum() for v in w[::1000]])
    torch.testing.assert_close(found.log_prior, log_p, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(found.log_likelihood[::1000], expected, rtol=1e-10, atol=1e-10)
    assert seconds < 10, "10 000 calls take 30 seconds and more"
    assert abs(w.mean()) < 5 * 0.1 / (10_000 * 50) ** 0.5
    assert len(w[:, 0].unique()) == 10_000


@pytest.mark.parametrize("make", [AutoNormal, AutoDiagonalNormal, AutoMultivariateNormal, "mean field", "full rank", "plain"])
def test_each_kind_of_guide_of_a_plain_model(make):
    """The density of every draw agrees with the closed form at that draw, and draws do not repeat."""
    torch.manual_seed(1)
    table = torch.randn(7, 3)
    y = table.sum(-1)
    families = {"mean field": MeanField, "full rank": FullRank}
    guide = (
        regression_guide if make == "plain" else Global(regression, families[make]()) if make in families else make(regression)
    )
    with isolated(0), warnings.catch_warnings():
        warnings.simplefilter("error")
        found = draw_all(regression, guide, (table, y), draws=40)
        again = draw_all(regression, guide, (table, y), draws=40)
    w = found.h["w"]
    log_p = dist.Normal(0.0, 1.0).log_prob(w).sum(-1) + dist.Normal(w @ table.T, 0.5).log_prob(y).sum(-1)
    torch.testing.assert_close(joint(found)[0], log_p, rtol=1e-10, atol=1e-10)
    assert len(torch.cat([w, again.h["w"]]).unique(dim=0)) == 80
    assert found.pointwise["y"].shape == (40, 7)


@pytest.mark.parametrize("program", [p for p in PROGRAMS if p.name != "deep_markov" and not p.kwargs], ids=lambda p: p.name)
def test_programs_are_scored_as_pyro_scores_them(program, monkeypatch):
    """Draws of a batch have the densities of single calls; what cannot be mapped is called once for each, and says so."""
    if program.name in SINGLE:
        torch.set_default_dtype(torch.float32)
    model, guide = program.make()
    args = program.args if program.name in SINGLE else doubled(program.args)
    with isolated(0), warnings.catch_warnings(record=True) as caught, torch.no_grad():
        warnings.simplefilter("always")
        guide(*args)
        mapped = draw_all(model, guide, args, draws=30)
        monkeypatch.setattr("inference.programs.draws.MIN_MAPPED", 10**9)
        single = draw_all(model, guide, args, draws=30)
        if program.name not in NOISY:
            assert_agrees_with_pyro(model, args, mapped, 1)
            assert_agrees_with_pyro(model, args, mapped, 17)
    reasons = [str(w.message) for w in caught if SLOW in str(w.message)]
    assert bool(reasons) == (program.name in NOT_MAPPED)
    assert {n: v.shape for n, v in mapped.h.items()} == {n: v.shape for n, v in single.h.items()}
    assert {n: v.shape for n, v in mapped.pointwise.items()} == {n: v.shape for n, v in single.pointwise.items()}
    assert mapped.per_datum == single.per_datum
    for one, many in zip(joint(single), joint(mapped), strict=True):
        if one.isinf().any():
            assert torch.equal(one, many)
            continue
        se = ((one.var() + many.var()) / 30).sqrt()
        assert abs(one.mean() - many.mean()) <= 5 * se + 1e-5 * (1 + one.abs().max())


def assert_agrees_with_pyro(model, args, found, k):
    """log p(x, h) of draw k is what Pyro's trace of the model says of these h."""
    held = {name: value[k] for name, value in found.h.items()}
    trace = poutine.trace(poutine.condition(model, held)).get_trace(*args)
    if any(s["type"] == "sample" and s["infer"].get("enumerate") and n not in held for n, s in trace.nodes.items()):
        return
    expected, value = trace.log_prob_sum(), joint(found)[0][k]
    tolerance = 1e-10 if value.dtype == torch.float64 else 1e-4
    assert abs(expected - value) <= tolerance * (1 + abs(expected))


def uncertain(x):
    loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
    pyro.sample("x", dist.Normal(loc, 1.0).expand(x.shape).to_event(1), obs=x)


def by_numpy(x):
    pyro.sample("loc", dist.Normal(float(np.random.normal()), 0.1))


def by_python(x):
    pyro.sample("loc", dist.Normal(random.gauss(0.0, 1.0), 0.1))


def own_generator():
    source = np.random.default_rng(0)
    return lambda x: pyro.sample("loc", dist.Normal(torch.tensor(source.normal()), 0.1))


def counts():
    calls = []

    def guide(x):
        calls.append(1)
        pyro.sample("loc", dist.Normal(0.01 * len(calls), 1.0))

    return guide


def hidden_noise(x):
    pyro.sample("loc", dist.Normal(torch.randn(()), 0.1))


def in_place(x):
    loc = torch.zeros(())
    loc += pyro.sample("raw", dist.Normal(0.0, 1.0), infer={"is_auxiliary": True})
    pyro.sample("loc", dist.Normal(loc, 0.1))


def branching(x):
    raw = pyro.sample("raw", dist.Normal(0.0, 1.0), infer={"is_auxiliary": True})
    pyro.sample("loc", dist.Normal(1.0 if raw > 0 else -1.0, 0.1))


def reads_a_number(x):
    raw = pyro.sample("raw", dist.Normal(0.0, 1.0), infer={"is_auxiliary": True})
    pyro.sample("loc", dist.Normal(float(raw), 0.1))


GUIDES = [by_numpy, by_python, own_generator(), counts(), hidden_noise, in_place, branching, reads_a_number]


@pytest.mark.parametrize("guide", GUIDES, ids=lambda g: g.__qualname__)
def test_a_guide_that_cannot_be_mapped_is_never_wrong(guide):
    """Draws spread as those of single calls do: noise that is drawn outside Pyro is new for each of them."""
    with isolated(0), warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        many = draw_all(uncertain, guide, (X,), draws=300).h["loc"]
        ones = torch.stack([poutine.trace(guide).get_trace(X).nodes["loc"]["value"] for _ in range(300)])
    assert abs(many.std() / ones.std() - 1) < 0.3
    assert len(many.unique()) == 300


def stopping_model(x):
    loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
    scale = 1.0 if loc > 0 else 2.0
    pyro.sample("x", dist.Normal(loc, scale).expand(x.shape).to_event(1), obs=x)


def in_place_model(x):
    table = torch.zeros(2)
    table[0] = pyro.sample("loc", dist.Normal(0.0, 1.0))
    pyro.sample("x", dist.Normal(table[0], 1.0).expand(x.shape).to_event(1), obs=x)


def numpy_model(x):
    loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
    shift = float(np.asarray(loc.detach()))
    pyro.sample("x", dist.Normal(shift, 1.0).expand(x.shape).to_event(1), obs=x)


@pytest.mark.parametrize("model", [stopping_model, in_place_model, numpy_model])
def test_a_model_that_cannot_be_mapped_warns_once_and_is_right(model):
    def guide(x):
        pyro.sample("loc", dist.Normal(0.0, 1.0))

    with isolated(0):
        with pytest.warns(UserWarning, match=SLOW):
            found = draw_all(model, guide, (X,), draws=20)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            draw_all(model, guide, (X,), draws=20)
    for loc, value in zip(found.h["loc"], found.log_likelihood, strict=True):
        trace = poutine.trace(poutine.condition(model, {"loc": loc})).get_trace(X)
        assert abs(trace.nodes["x"]["fn"].log_prob(X).sum() - value) < 1e-10


def in_a_transform(x):
    """The Cholesky factor is filled in place by the transform of its support; the prior of `free` has no draws."""
    pyro.sample("corr", dist.LKJCholesky(2, torch.tensor(2.0)))
    loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
    pyro.sample("free", dist.ImproperUniform(dist.constraints.positive, (), ()))
    pyro.sample("x", dist.Normal(loc, 1.0).expand(x.shape).to_event(1), obs=x)


@pytest.mark.parametrize("model", [stopping_model, in_place_model, in_a_transform, uncertain])
def test_the_log_joint_of_any_model(model):
    """Density, score and curvature are those of single calls, also where the model cannot be mapped over points."""
    joint = LogJoint(model, X)
    u = torch.randn(5, joint.dim, generator=torch.Generator().manual_seed(0))
    found, scores = joint(u), joint.score(u)
    packed = PackedScores(model, joint.latents, (X,))
    values, slopes = packed(u)
    for k, point in enumerate(u):
        values_here, log_det = joint.latents.constrain(point)
        trace = poutine.trace(poutine.condition(model, values_here)).get_trace(X)
        expected = trace.log_prob_sum() + log_det
        assert abs(expected - found[k]) < 1e-10
        leaf = point.clone().requires_grad_()
        (score,) = torch.autograd.grad(joint.at(leaf), leaf)
        torch.testing.assert_close(scores[k], score, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(values, found.detach(), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(slopes, scores, rtol=1e-10, atol=1e-10)
    hessian = torch.autograd.functional.hessian(joint.at, u[0])
    torch.testing.assert_close(joint.hessian(u[0]), hessian, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(packed.curvature(u[0]), -hessian, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(joint.unconstrain(joint.constrain(u)), u, rtol=1e-8, atol=1e-8)


def test_the_draws_are_fixed_by_the_seed_and_nothing_global_changes():
    def guide(x):
        pyro.sample("loc", dist.Normal(pyro.param("m", torch.tensor(0.5)), 0.1))

    state = torch.get_rng_state(), random.getstate(), str(np.random.get_state())
    one, two = (elbo(uncertain, guide, X, draws=50, seed=3) for _ in range(2))
    assert one.value == two.value != elbo(uncertain, guide, X, draws=50, seed=4).value
    assert torch.equal(torch.get_rng_state(), state[0])
    assert (random.getstate(), str(np.random.get_state())) == state[1:]
    assert not list(pyro.get_param_store().keys())


class TestSubsampling:
    """A model that subsamples by itself is evaluated on all its rows."""

    @staticmethod
    def model(x, part=2):
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x), subsample_size=part) as rows:
            pyro.sample("x", dist.Normal(loc, 1.0), obs=x[rows])

    @staticmethod
    def guide(x):
        pyro.sample("loc", dist.Normal(0.5, 0.3))

    @pytest.mark.parametrize("draws", [3, 50])
    def test_all_rows(self, draws):
        with isolated(0):
            found = draw_all(self.model, self.guide, (X,), draws=draws)
        expected = dist.Normal(found.h["loc"].unsqueeze(-1), 1.0).log_prob(X)
        torch.testing.assert_close(found.pointwise["x"], expected, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(found.log_likelihood, expected.sum(-1), rtol=1e-10, atol=1e-10)

    def test_local_latents_and_an_autoguide(self):
        def model(x):
            with pyro.plate("data", len(x), subsample_size=2) as rows:
                h = pyro.sample("h", dist.Normal(0.0, 1.0))
                pyro.sample("x", dist.Normal(h, 1.0), obs=x[rows])

        guide = AutoNormal(model)
        with isolated(0):
            guide(X)
            found = draw_all(model, guide, (X,), draws=20)
        assert found.h["h"].shape == (20, 6)
        assert found.per_datum
        torch.testing.assert_close(found.log_likelihood, dist.Normal(found.h["h"], 1.0).log_prob(X), rtol=1e-10, atol=1e-10)

    def test_a_minibatch_that_is_the_data_keeps_its_scale(self):
        def model(x):
            loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
            with pyro.plate("data", 60, subsample_size=len(x)):
                pyro.sample("x", dist.Normal(loc, 1.0), obs=x)

        with isolated(0):
            found = draw_all(model, self.guide, (X,), draws=20)
        expected = 10 * dist.Normal(found.h["loc"].unsqueeze(-1), 1.0).log_prob(X).sum(-1)
        torch.testing.assert_close(found.log_likelihood, expected, rtol=1e-10, atol=1e-10)


ENUMERATED = [p for p in PROGRAMS if p.name in {"hidden_markov", "enumerated_series_in_a_plate"}]


class TestEnumeration:
    """What the model marks for enumeration and the guide does not draw is summed out, with the values of `TraceEnum_ELBO`."""

    @pytest.mark.parametrize("program", ENUMERATED, ids=lambda p: p.name)
    def test_the_sum_is_that_of_pyro(self, program):
        model, guide = program.make()
        args = doubled(program.args)
        with isolated(0), torch.no_grad():
            guide(*args)
            (chunk,) = draw_chunks(model, guide, args, draws=20)
            for k in (0, 7, 19):

                def at_the_draw(*args, k=k):
                    for name, value in chunk.h.items():
                        pyro.sample(name, dist.Delta(value[k], event_dim=value[k].dim()))

                expected = -program.loss().loss(model, at_the_draw, *args)
                found = float(chunk.log_likelihood[k] + chunk.log_prior[k])
                assert abs(found - expected) < 1e-10 * (1 + abs(expected))
        assert not any(name.startswith("z") for name in chunk.h)

    def test_a_mixture_agrees_with_its_own_density(self):
        def model(x):
            loc = pyro.sample("loc", dist.Normal(torch.zeros(2), 3.0).to_event(1))
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Categorical(torch.tensor([0.3, 0.7])), infer={"enumerate": "parallel"})
                pyro.sample("x", dist.Normal(loc[z], 1.0), obs=x)

        def guide(x):
            pyro.sample("loc", dist.Normal(torch.zeros(2), 1.0).to_event(1))

        found = elbo(model, guide, X, draws=50)
        with isolated(0):
            chunk = draw_all(model, guide, (X,), draws=50)
        mixture = dist.MixtureSameFamily(
            dist.Categorical(torch.tensor([0.3, 0.7]).expand(50, 1, 2)), dist.Normal(chunk.h["loc"].unsqueeze(1), 1.0)
        )
        torch.testing.assert_close(chunk.pointwise["x"], mixture.log_prob(X.expand(50, 6)), rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(
            chunk.log_prior, dist.Normal(0.0, 3.0).log_prob(chunk.h["loc"]).sum(-1), rtol=1e-10, atol=1e-10
        )
        assert abs(found.value - float((chunk.log_likelihood + chunk.log_prior - chunk.log_q).mean())) < 5 * found.se
