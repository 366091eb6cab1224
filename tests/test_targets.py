"""Targets, and the models whose evidence is known by quadrature or algebra."""

import pytest
import torch
from problems import ALL_MODELS
from pyro import poutine

import models
from guides import FullRank, Global, MeanField, Posterior, Prior, Structured
from inference import analytic_elbo, compare, elbo, evidence_minus_kl, fit
from inference.programs.draws import draw_chunks
from inference.programs.isolation import isolated
from models import (
    Banana,
    EightSchools,
    Funnel,
    GaussianProcess,
    LogisticRegression,
    Radon,
    Ring,
    RosenbrockLike,
    StateSpace,
    Target,
)
from models.datasets import diabetes, digits
from models.posteriordb import KidScore

TARGETS = [getattr(models, n) for n in models.__all__ if issubclass(getattr(models, n), Target) and n != "Target"]


@pytest.fixture(autouse=True)
def _float64():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("cls", TARGETS)
def test_draws_match_the_density(cls):
    """Stein's identity: the mean of h · score + d over exact draws is zero for this target, and not for another one."""
    model = cls()

    def z(other):
        h = model.target().sample((20000,)).requires_grad_()
        score = torch.autograd.grad(other.target().log_prob(h).sum(), h)[0]
        bounded = (h.detach() * score).clamp(-1e6, 1e6).sum(-1) + h.shape[-1]
        return float((bounded.mean() / bounded.std()).abs() * 20000**0.5)

    assert z(model) < 5
    wrong = cls()
    for buffer in wrong.buffers():
        if buffer.is_floating_point() and buffer != 0:
            buffer.mul_(1.2)
    assert z(wrong) > 5


@pytest.mark.parametrize("make", [lambda: Funnel(2, scale=1.0), Banana, lambda: RosenbrockLike(2), Ring])
def test_targets_are_normalised(make):
    """The density sums to 1 over a grid that follows the ridge, along which it is smooth enough for an exact sum."""
    model = make()
    t = torch.linspace(-8, 8, 801)
    a, b = (v.clone() for v in torch.meshgrid(t, t, indexing="ij"))
    width = torch.ones_like(a)
    if isinstance(model, Banana):
        a, width = 2 * a, 2 * width
        b = b + model.bend * (a**2 - model.scale**2)
    elif isinstance(model, RosenbrockLike):
        a, width = a + 1, 0.2 * width
        b = model.curvature * a**2 + 0.2 * b
    elif isinstance(model, Funnel):
        width = (a / 2).exp()
        b = b * width
    total = (model.target().log_prob(torch.stack([a, b], -1)).exp() * width).sum() * (t[1] - t[0]) ** 2
    assert float(total) == pytest.approx(1.0, abs=1e-8)


@pytest.mark.parametrize("cls", TARGETS)
def test_the_target_is_its_own_posterior(cls):
    model, x = cls.demo()
    estimate = elbo(model, Posterior(model), x, draws=20)
    assert estimate.value == pytest.approx(float(model.log_evidence(x)), abs=1e-9)


def test_a_gaussian_reaches_the_non_centred_funnel_and_not_the_centred_one():
    gaps = {}
    for centered in (False, True):
        model = Funnel(4, centered=centered)
        x = torch.zeros(1)
        done = fit(model, Global(model, MeanField()), x, steps=600, lr=0.05)
        estimate = elbo(model, done.guide, x, draws=500)
        gaps[centered] = float(model.log_evidence(x)) - estimate.value, estimate.se
    assert abs(gaps[False][0]) < 0.01 + 5 * gaps[False][1]
    assert gaps[True][0] > 0.5 + 5 * gaps[True][1]


def test_gaussian_process_identities_and_the_sparse_bound():
    model, x = GaussianProcess.demo(seed=1)
    family = FullRank().over(8)
    q = family(0.3 * torch.randn(family.size))
    torch.testing.assert_close(analytic_elbo(model, q, x), evidence_minus_kl(model, q, x), atol=1e-8, rtol=1e-10)
    exact = model.log_evidence(x)
    places = model.covariates
    torch.testing.assert_close(model.sparse_elbo(places, x), exact, atol=1e-7, rtol=0)
    previous = model.sparse_elbo(places[:1], x)
    for m in range(2, 8):
        value = model.sparse_elbo(places[:m], x)
        assert previous <= value + 1e-9
        assert value < exact
        previous = value
    # The bound is the ELBO of its own q, computed independently by the dense model.
    inducing = places[::3]
    q = model.sparse_posterior(inducing, x)
    torch.testing.assert_close(analytic_elbo(model, q, x), model.sparse_elbo(inducing, x), atol=1e-6, rtol=0)


def test_gaussian_process_takes_several_draws():
    model, x = GaussianProcess.demo(seed=2)
    estimate = elbo(model, Posterior(model), x, draws=7)
    assert estimate.value == pytest.approx(float(model.log_evidence(x)), abs=1e-8)


@pytest.mark.parametrize("centered", [True, False])
def test_eight_schools_has_the_published_evidence(centered):
    model, x = EightSchools.demo(centered=centered)
    model, x = model.double(), x.double()
    assert float(model.log_evidence(x)) == pytest.approx(-31.31134735229285, abs=1e-8)
    exact = model.moments(x)
    assert float(exact.mean["mu"]) == pytest.approx(4.39682071383306, abs=1e-7)
    assert float(exact.mean["tau"]) == pytest.approx(3.59770548409676, abs=1e-7)
    assert float(exact.sd["tau"]) == pytest.approx(3.2199584146628673, abs=1e-7)
    assert float(exact.sd["theta"][0]) == pytest.approx(5.593126195330282, abs=1e-7)


def test_both_parametrisations_give_the_same_joint():
    for cls in (EightSchools, Radon):
        centred, x = cls.demo(centered=True)
        other, _ = cls.demo(centered=False)
        centred, other, x = centred.double(), other.double(), x.double()
        h, _ = other.simulate(len(x), seed=3)
        draws = {k: v.unsqueeze(0) for k, v in h.items()}
        latents = {k: v[0] for k, v in other.quantities(draws).items()}
        name, scale = ("theta", h["tau"]) if cls is EightSchools else ("alpha", h["sigma_alpha"])
        a = _log_joint(centred, latents, x)
        b = _log_joint(other, h, x)
        # The change of variables adds log scale for each local latent.
        torch.testing.assert_close(a + latents[name].numel() * scale.log(), b, atol=1e-9, rtol=0)


def _log_joint(model, latents, x):
    return poutine.trace(poutine.condition(model, latents)).get_trace(x).log_prob_sum()


@pytest.mark.parametrize("cls", ALL_MODELS)
def test_every_model_draws_in_batches(cls):
    """Prior and likelihood broadcast over an outer plate: batched draws agree with the log joint of each draw."""
    model, x = cls.demo(seed=1)
    with isolated(0):
        chunk = next(iter(draw_chunks(model, Prior(model), (x,), draws=3))).total
        for k in range(3):
            latents = {site: value[k] for site, value in chunk.h.items()}
            expected = _log_joint(model, latents, x)
            torch.testing.assert_close((chunk.log_likelihood + chunk.log_prior)[k], expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("cls", ALL_MODELS)
@pytest.mark.parametrize("source", [digits, diabetes])
def test_every_model_takes_the_standard_data(cls, source):
    model, x = cls.from_dataset(source())
    model.check_data(x)


@pytest.mark.parametrize("cls", ALL_MODELS)
def test_a_model_with_covariates_needs_targets_and_no_other_does(cls):
    data = diabetes()
    if hasattr(cls.from_dataset(data)[0], "covariates"):
        with pytest.raises(ValueError, match=f"{cls.__name__} needs targets, but the data set 'diabetes' has none"):
            cls.from_dataset(data._replace(y=None))
    else:
        model, x = cls.from_dataset(data._replace(y=None))
        model.check_data(x)


def test_another_prior_gives_another_evidence():
    """mu ~ N(0, 10) changes the evidence by more than the tolerances of these tests."""
    model, x = EightSchools.demo()
    model, x = model.double(), x.double()
    model.mu_scale.fill_(10.0)
    assert abs(float(model.log_evidence(x)) + 31.31134735) > 0.05


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Funnel(1), "dim must be at least 2"),
        (lambda: Ring(0), "modes must be at least 1"),
        (lambda: StateSpace(0), "steps must be at least 1"),
        (lambda: Banana(scale=-1.0), "scale must be positive"),
        (lambda: Radon(torch.randn(4, 2), torch.zeros(3).long()), "county must hold 4 integers"),
        (lambda: EightSchools().check_data(torch.zeros(7)), "x has 7 rows"),
        (lambda: LogisticRegression(torch.randn(3, 2)).check_data(torch.tensor([0.0, 0.5, 1.0])), "row 1 of x holds 0.5"),
        (lambda: GaussianProcess(torch.randn(3)), "covariates must be"),
    ],
)
def test_bad_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_compare_uses_every_known_evidence_and_leaves_out_improper_priors():
    options = {"steps": 5, "seeds": 1, "draws": 50}
    model, x = EightSchools.demo()
    frame = compare(model.double(), {"s": lambda m: Structured(m, MeanField())}, x.double(), **options).to_frame()
    assert list(frame["guide"]) == ["prior", "s"]
    assert frame["evidence"].tolist() == pytest.approx([-31.311347] * 2, abs=1e-5)
    model, x = Banana.demo()
    frame = compare(model, {"g": lambda m: Global(m, FullRank())}, x, **options).to_frame()
    assert list(frame["guide"]) == ["prior", "g", "exact posterior"]
    assert frame["gap"].iloc[2] == pytest.approx(0.0, abs=1e-9)
    model, x = KidScore.demo()
    frame = compare(model, {"g": lambda m: Global(m, FullRank())}, x, **options).to_frame()
    assert list(frame["guide"]) == ["g"]
