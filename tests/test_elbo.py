"""Monte Carlo ELBOs against their closed forms."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from problems import CONTINUOUS, PAIRS, TRACTABLE, build, demo, shake
from pyro import poutine
from pyro.infer import TraceEnum_ELBO
from pyro.infer.autoguide import (
    AutoDelta,
    AutoDiagonalNormal,
    AutoGuideList,
    AutoLaplaceApproximation,
    AutoLowRankMultivariateNormal,
    AutoMultivariateNormal,
    AutoNormal,
)

from guides import Delta, Global, Local, MeanField, Posterior, Prior
from inference import analytic_elbo, elbo, fit
from inference.programs.draws import draw_all, draw_chunks
from inference.programs.isolation import isolated
from models import GaussianMean, LocalGaussian, LocalModel


@pytest.mark.parametrize(("model_class", "source", "family"), PAIRS)
def test_agrees_with_the_closed_form(model_class, source, family):
    model, x = demo(model_class)
    guide = build(model, source, family, x)
    shake(guide, 0.1, seed=1)
    q = guide.q(x)
    found = elbo(model, guide, x, draws=400)
    exact = analytic_elbo(model, q, x).sum().item()
    assert abs(found.value - exact) < 5 * found.se
    assert abs(found.value - exact - 0.1 * abs(exact)) > 5 * found.se
    total = found.total
    torch.testing.assert_close(total.elbo, total.reconstruction - total.complexity, rtol=1e-12, atol=1e-9)
    reconstruction = model.expected_log_likelihood(q, x).sum()
    assert abs(total.reconstruction - reconstruction) < 5 * total.reconstruction_se
    if isinstance(model, LocalModel):
        per_datum = found.per_datum
        torch.testing.assert_close(per_datum.elbo.sum(), total.elbo, rtol=1e-10, atol=1e-8)
        assert ((per_datum.elbo - analytic_elbo(model, q, x)).abs() < 5 * per_datum.elbo_se).all()
    else:
        assert found.per_datum is None


@pytest.mark.parametrize("model_class", CONTINUOUS)
@pytest.mark.parametrize(
    "guide_class", [AutoNormal, AutoDiagonalNormal, AutoMultivariateNormal, AutoLowRankMultivariateNormal, AutoDelta, Prior]
)
def test_vectorised_draws_agree_with_single_ones(model_class, guide_class, monkeypatch):
    """Draws by an outer plate agree with draws by one call each, for every kind of guide that is vectorised."""
    monkeypatch.setattr("inference.programs.draws.MIN_MAPPED", 100)
    model, x = demo(model_class)
    guide = guide_class(model)
    with isolated(0):
        guide(x)
        chunks = list(draw_chunks(model, guide, (x,), draws=60))
        single = list(draw_chunks(model.__call__, guide, (x,), draws=60))
    assert len(single) == 60
    for density in ("log_likelihood", "log_prior", "log_q"):
        many = torch.cat([getattr(c.total, density) for c in chunks])
        ones = torch.cat([getattr(c.total, density) for c in single])
        if many.isinf().all():
            assert torch.equal(many, ones)
            continue
        se = (many.var() / len(many) + ones.var() / len(ones)).sqrt()
        assert abs(many.mean() - ones.mean()) <= 5 * se + 1e-9 * many.abs().max()
    assert {n: v.shape[1:] for n, v in chunks[0].h.items()} == {n: v.shape[1:] for n, v in single[0].h.items()}
    assert chunks[0].pointwise["x"].shape[1:] == single[0].pointwise["x"].shape[1:]
    assert chunks[0].per_datum == single[0].per_datum


@pytest.mark.parametrize("model_class", TRACTABLE)
def test_prior_and_posterior_are_floor_and_ceiling(model_class):
    model, x = demo(model_class)
    floor, ceiling = elbo(model, Prior(model), x), elbo(model, Posterior(model), x)
    assert abs(ceiling.value - model.log_evidence(x).sum()) < 1e-10 * abs(ceiling.value)
    assert floor.value + 5 * floor.se < ceiling.value
    assert abs(floor.total.complexity) < 1e-9


def test_chunks_make_no_difference(monkeypatch):
    model, x = demo(LocalGaussian)
    guide = build(model, Local, MeanField, x)
    whole = elbo(model, guide, x, draws=50)
    monkeypatch.setattr("inference.programs.draws.MAX_SCORED_NUMBERS", 7 * x.numel())
    parts = elbo(model, guide, x, draws=50)
    assert abs(whole.value - parts.value) < 5 * (whole.se**2 + parts.se**2) ** 0.5
    assert abs(parts.se / whole.se - 1) < 0.5


def two_latents(x):
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    b = pyro.sample("b", dist.LogNormal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(a, b), obs=x)


def half_a_point(model):
    guide = AutoGuideList(model)
    guide.append(AutoDelta(poutine.block(model, expose=["a"])))
    guide.append(AutoNormal(poutine.block(model, expose=["b"])))
    return guide


class TestPointMass:
    @pytest.mark.parametrize("make", [lambda m: Global(m, Delta()), AutoDelta, AutoLaplaceApproximation])
    @pytest.mark.parametrize("which", [GaussianMean, LocalGaussian, "plain"])
    def test_has_no_elbo(self, make, which):
        model, x = (two_latents, torch.randn(4)) if which == "plain" else demo(which)
        found = elbo(model, make(model), x, draws=5)
        assert found.value == -float("inf")
        assert found.se == 0.0
        assert found.total.reconstruction.isfinite()

    def test_in_one_of_two_latents(self):
        assert elbo(two_latents, half_a_point(two_latents), torch.randn(4), draws=5).value == -float("inf")

    def test_in_several_chunks(self, monkeypatch):
        model, x = demo(LocalGaussian)
        monkeypatch.setattr("inference.programs.draws.MAX_SCORED_NUMBERS", 7 * x.numel())
        found = elbo(model, Local(model, Delta()), x, draws=40)
        assert (found.value, found.se) == (-float("inf"), 0.0)

    def test_is_not_found_in_guides_without_one(self):
        def guide(x):
            pyro.sample("a", dist.Normal(0.0, 1.0))
            pyro.sample("b", dist.LogNormal(0.0, 1.0))
            pyro.deterministic("c", torch.ones(()))

        assert elbo(two_latents, guide, torch.randn(4)).total.elbo.isfinite()
        for autoguide in (AutoNormal, AutoMultivariateNormal):
            assert elbo(two_latents, autoguide(two_latents), torch.randn(4)).total.elbo.isfinite()


@pytest.mark.parametrize(
    ("model_class", "guide_class"),
    [(m, g) for m in TRACTABLE for g in (Prior, Posterior) if g is Prior or issubclass(m, LocalModel)],
)
def test_reference_guides_are_scaled_in_minibatches(model_class, guide_class):
    """With the same draws, log p − log q of all data is its mean over minibatches."""
    model, x = demo(model_class)
    h = poutine.trace(guide_class(model)).get_trace(x).nodes["h"]["value"].detach()

    def log_q(index):
        value = h if index is None or not isinstance(model, LocalModel) else h[index]
        arguments = (x,) if index is None else (x[index], index, len(x))
        trace = poutine.trace(poutine.condition(guide_class(model), {"h": value})).get_trace(*arguments)
        return trace.log_prob_sum()

    parts = torch.stack([log_q(index) for index in torch.arange(len(x)).reshape(4, -1)])
    torch.testing.assert_close(parts.mean(), log_q(None), atol=1e-10, rtol=0.0)


def test_enumerated_latents_are_summed_out():
    """Also where a latent that the guide draws depends on the enumerated one."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(torch.tensor(0.3).to(x)), infer={"enumerate": "parallel"})
            h = pyro.sample("h", dist.Normal(z, 1.0))
            pyro.sample("x", dist.Normal(h, 1.0), obs=x)

    x = torch.randn(5, dtype=torch.float64)
    guide = AutoNormal(poutine.block(model, hide=["z"]))
    done = fit(model, guide, x, steps=3, objective=TraceEnum_ELBO(max_plate_nesting=1))
    with isolated(0):
        found = draw_all(done.model, done.guide, (x,), draws=20)
    h = found.h["h"]
    assert list(found.h) == ["h"]
    share = torch.tensor(0.3).to(x)
    prior = dist.MixtureSameFamily(dist.Categorical(torch.stack([1 - share, share])), dist.Normal(torch.arange(2).to(x), 1.0))
    expected = prior.log_prob(h) + dist.Normal(h, 1.0).log_prob(x)
    torch.testing.assert_close((found.log_likelihood + found.log_prior).sum(-1), expected.sum(-1), rtol=1e-10, atol=1e-10)


def test_seeds():
    model, x = demo(GaussianMean)
    guide = build(model, Global, MeanField, x)
    assert elbo(model, guide, x, seed=1).value == elbo(model, guide, x, seed=1).value != elbo(model, guide, x, seed=2).value


def test_bad_input():
    model, x = demo(GaussianMean)
    guide = Global(model, MeanField())
    with pytest.raises(ValueError, match="draws must be at least 2, but is 0"):
        elbo(model, guide, x, draws=0)
    with pytest.raises(ValueError, match="at least 2, but is 1"):
        elbo(model, guide, x, draws=1)
    with pytest.raises(ValueError, match="row 3"):
        elbo(model, guide, x.index_fill(0, torch.tensor(3), float("nan")))


def test_plain_models_with_other_plates():
    def model(x):
        with pyro.plate("rows", len(x), dim=-2), pyro.plate("columns", x.shape[1], dim=-1):
            h = pyro.sample("h", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(h, 1.0), obs=x)

    x = torch.zeros(3, 2)
    found = elbo(model, Prior(model), x, draws=2000)
    exact = 6 * (-0.5 * torch.log(torch.tensor(2 * torch.pi)) - 0.5)
    assert abs(found.value - exact) < 5 * found.se


def test_a_density_that_overflows_is_no_elbo():
    model, x = GaussianMean.demo()
    with pytest.raises(ValueError, match=r"elbo: E_q\[log p\(x \| h\)\] is (-inf|nan) over 100 draws"):
        elbo(model, Global(model, MeanField()), 1e30 * x)
