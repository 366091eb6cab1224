"""Guides of models with shared and local latents: one block for the shared ones, and one for each datum."""

import pytest
import torch
from problems import SOURCES
from pyro import poutine
from pyro.poutine.util import prune_subsample_sites

from guides import MLP, Amortized, FullRank, Global, Local, MeanField, SemiAmortized, Structured
from inference import elbo, fit
from inference.programs.draws import draw_chunks
from inference.programs.isolation import isolated
from models import EightSchools, LocalGaussian, NormalGamma, Radon


def schools(centered=True):
    model, x = EightSchools.demo(centered=centered)
    return model.double(), x.double()


def built(source, model, x):
    family = MeanField() if source.local else FullRank()
    guide = source(model, family, MLP((8,))) if issubclass(source, Amortized) else source(model, family)
    guide.setup(x)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in guide.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))
    return guide


ALL = [pytest.param(source, marks=pytest.mark.slow if issubclass(source, SemiAmortized) else ()) for source in SOURCES]
LOCAL = [source for source in ALL if source.values[0].local]


@pytest.mark.parametrize("source", ALL)
@pytest.mark.parametrize("centered", [True, False])
def test_draws_all_latents_and_batched_draws_agree_with_single_ones(source, centered):
    model, x = schools(centered)
    guide = built(source, model, x)
    trace = prune_subsample_sites(poutine.trace(guide).get_trace(x))
    local = "theta" if centered else "theta_trans"
    drawn = {n: s["value"] for n, s in trace.nodes.items() if s["type"] == "sample" and n[0] != "_"}
    assert {n: tuple(v.shape) for n, v in drawn.items()} == {"mu": (), "tau": (), local: (8,)}
    assert drawn["tau"] > 0
    with isolated(0):
        chunk = next(iter(draw_chunks(model, guide, (x,), draws=5)))
        for k in range(5):
            h = {site: value[k] for site, value in chunk.h.items()}
            log_p = poutine.trace(poutine.condition(model, h)).get_trace(x).log_prob_sum()
            torch.testing.assert_close((chunk.log_likelihood + chunk.log_prior)[k], log_p, atol=1e-10, rtol=0)
    values = torch.stack([torch.cat([chunk.h["mu"][k : k + 1], chunk.h[local][k]]) for k in range(5)])
    assert torch.linalg.matrix_rank(values - values.mean(0)) == 4


@pytest.mark.slow
@pytest.mark.parametrize("source", ALL)
def test_density_is_normalised_through_the_bijection(source):
    """E_q[p(h) / q(h)] = 1 for the prior narrowed by the data: exactly, importance weights average to the evidence."""
    model, x = schools(centered=False)
    guide = built(source, model, x)
    fit(model, guide, x, steps=300, lr=0.05)
    with isolated(1):
        chunk = next(iter(draw_chunks(model, guide, (x,), draws=20_000))).total
    log_weight = chunk.log_likelihood + chunk.log_prior - chunk.log_q
    weight = (log_weight - model.log_evidence(x)).exp()
    error = weight.std() / len(weight) ** 0.5
    assert abs(weight.mean() - 1) < 5 * error < 0.3


@pytest.mark.parametrize("source", LOCAL)
def test_minibatches_average_to_the_whole(source):
    """With the same draws, the batches' mean log density is the whole's: shared latents count once, local ones scaled."""
    model, x = schools()
    guide = built(source, model, x)
    whole = poutine.trace(guide).get_trace(x)
    fixed = {n: s["value"] for n, s in whole.nodes.items() if s["type"] == "sample" and n[0] == "_"}
    packed = {n: v for n, v in fixed.items() if n == "_shared"}
    theta = whole.nodes["theta"]["value"] if "theta" in whole.nodes else None
    whole_q, whole_p, parts_q, parts_p = whole.log_prob_sum(), None, [], []
    values = {n: whole.nodes[n]["value"] for n in ("mu", "tau")}
    whole_p = poutine.trace(poutine.condition(model, {**values, "theta": theta})).get_trace(x).log_prob_sum()
    for index in torch.arange(8).reshape(4, 2):
        local = {n: v[index] for n, v in fixed.items() if n == "_latent"}
        given = poutine.condition(guide, {**packed, **local})
        trace = poutine.trace(given).get_trace(x[index], index=index, size=8)
        torch.testing.assert_close(trace.nodes["theta"]["value"], theta[index])
        parts_q.append(trace.log_prob_sum())
        h = {**values, "theta": theta[index]}
        parts_p.append(poutine.trace(poutine.condition(model, h)).get_trace(x[index], index=index, size=8).log_prob_sum())
    torch.testing.assert_close(torch.stack(parts_q).mean(), whole_q, atol=1e-10, rtol=0)
    torch.testing.assert_close(torch.stack(parts_p).mean(), whole_p, atol=1e-10, rtol=0)
    assert abs(parts_q[0] - whole_q) > 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("source", LOCAL)
def test_minibatch_fits_run(source):
    model, x = schools(centered=False)
    guide = built(source, model, x)
    start = elbo(model, guide, x, draws=500)
    done = fit(model, guide, x, steps=200, lr=0.03, batch_size=4)
    reached = elbo(model, done.guide, x, draws=500)
    assert reached.value > start.value + 5 * (start.se + reached.se)


@pytest.mark.slow
def test_structured_is_better_than_local_on_a_dependent_posterior():
    """Structured contains Local, and on the centred posterior its ELBO is higher by more than the noise."""
    model, x = schools(centered=True)
    reached = {}
    for source in (Local, Structured):
        guide = built(source, model, x)
        fit(model, guide, x, steps=2500, lr=0.03, seed=2)
        reached[source] = elbo(model, guide, x, draws=4000)
    assert reached[Structured].value - reached[Local].value > 0.2 + 5 * reached[Local].se
    assert reached[Structured].value < float(model.log_evidence(x)) + 5 * reached[Structured].se


def test_a_draw_of_the_shared_latents_moves_the_local_blocks():
    model, x = schools()
    for source in (Structured, Amortized):
        guide = built(source, model, x)
        one, other = (guide.q_given(x, None, torch.full((2,), v).double()).mean for v in (0.0, 1.0))
        assert (one - other).abs().min() > 1e-4
    local = built(Local, model, x)
    same = [local.q_given(x, None, torch.full((2,), v).double()).mean for v in (0.0, 1.0)]
    torch.testing.assert_close(*same)


def test_structured_without_shared_latents_is_local():
    model, x = LocalGaussian.demo()
    guides = [kind(model, FullRank()) for kind in (Local, Structured)]
    losses = [fit(model, guide, x, steps=5).nelbo for guide in guides]
    torch.testing.assert_close(*losses)
    with pytest.raises(ValueError, match="no latents outside the plate"):
        guides[1].q_shared()


def test_plates_of_their_own_are_respected():
    """The plate of Radon's counties is not the data plate: a global guide packs it, and a local one refuses it."""
    model, x = Radon.demo(centered=True)
    guide = Global(model, MeanField())
    guide.setup(x)
    assert guide.latents.dim == 6 + 2 + 3
    assert guide(x)["alpha"].shape == (6,)
    with pytest.raises(ValueError, match="needs it inside the plate 'data' alone"):
        Local(model, MeanField()).setup(x)
    model, x = NormalGamma.demo()
    with isolated(0):
        draw = Global(model, FullRank())(x)["h"]
    assert draw.shape == (2,)
    assert draw[1] > 0
