"""Conjugate models whose posterior is not Gaussian, and the closed forms of single ones. Bayes' rule: test_exact_answers."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from problems import ALL_MODELS, MODELS, NOT_GAUSSIAN, demo
from pyro import poutine
from scipy import integrate

from guides import Posterior
from inference import analytic_elbo, elbo, evidence_minus_kl
from models import BetaBernoulli, GaussianMixture, NormalGamma
from models.normal_gamma import IndependentNormalGamma, NormalGammaDistribution

ATOL = 1e-10


@pytest.fixture(autouse=True)
def _float64():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("cls", NOT_GAUSSIAN)
def test_one_draw_elbo_at_the_posterior_is_the_evidence(cls):
    model, x = cls.demo(seed=2)
    estimate = elbo(model, Posterior(model), x, draws=10)
    assert estimate.value == pytest.approx(float(model.log_evidence(x).sum().detach()), abs=1e-9)
    assert estimate.se < 1e-9


@pytest.mark.parametrize("cls", NOT_GAUSSIAN)
def test_expected_log_likelihood_agrees_with_draws(cls):
    model, x = cls.demo(seed=3)
    q = model.posterior(model.simulate(len(x), seed=4)[1])
    with pyro.plate("draws", 4000, dim=-2):
        h = q.sample((4000, 1)) if not q.batch_shape else q.sample((4000,))
        with pyro.plate("data", len(x), dim=-1):
            site = poutine.trace(model.likelihood).get_trace(h, x).nodes["x"]
    draws = site["fn"].log_prob(x).reshape(4000, -1).sum(-1)
    exact = model.expected_log_likelihood(q, x).sum()
    error = draws.std() / 4000**0.5
    assert abs(draws.mean() - exact) < 5 * error
    assert abs(draws.mean() - 1.05 * exact) > 5 * error


# A binary model, which is in MODELS, takes any q over zeros and ones.
@pytest.mark.parametrize("cls", [m for m in NOT_GAUSSIAN if m not in MODELS])
def test_a_q_of_another_family_is_refused(cls):
    model, x = cls.demo()
    with pytest.raises(TypeError, match=f"{cls.__name__}: q must"):
        model.expected_log_likelihood(dist.Normal(torch.zeros(3), 1.0).to_event(1), x)


def test_evidence_is_the_integral_of_the_joint():
    model, x = NormalGamma.demo(seed=4)

    def joint(mean, log_precision):
        h = torch.tensor([mean, log_precision]).double()
        h[1] = h[1].exp()
        return float((model.prior_density(h) + dist.Normal(h[0], h[1] ** -0.5).log_prob(x).sum()).exp() * h[1])

    model.prior_density = NormalGammaDistribution(model.loc, model.count, model.shape, model.rate).log_prob
    value = integrate.dblquad(joint, -6, 6, -12, 12, epsabs=1e-14, epsrel=1e-8)[0]
    assert float(model.log_evidence(x)) == pytest.approx(float(torch.tensor(value).log()), abs=1e-6)
    coin, tosses = BetaBernoulli(1), torch.tensor([[1.0], [0.0], [1.0]])
    assert float(coin.log_evidence(tosses).exp()) == pytest.approx(1 / 12)


def test_mean_field_of_normal_gamma_is_the_fixed_point_of_coordinate_ascent():
    model, x = NormalGamma.demo(seed=5)
    best = model.mean_field(x)
    posterior = model.posterior(x)
    squares = model._squares(x, posterior.loc)
    shape, rate = best.concentration, torch.tensor(1.0)
    for _ in range(60):
        variance = 1 / (posterior.count * shape / rate)
        rate = model.rate + 0.5 * (squares + posterior.count * variance)
    torch.testing.assert_close(best.rate, rate, atol=ATOL, rtol=ATOL)
    parameters = [p.clone().requires_grad_() for p in (best.loc, best.scale, best.concentration, best.rate)]
    value = analytic_elbo(model, IndependentNormalGamma(*parameters), x)
    for gradient in torch.autograd.grad(value, parameters):
        assert abs(gradient) < 1e-9
    moved = IndependentNormalGamma(best.loc, best.scale * 1.1, best.concentration, best.rate)
    assert analytic_elbo(model, moved, x) < value < model.log_evidence(x)
    other = evidence_minus_kl(model, best, x)
    torch.testing.assert_close(value, other, atol=ATOL, rtol=ATOL)


def test_mixture_evidence_sums_over_assignments_and_enumeration_agrees():
    model, x = GaussianMixture.demo(seed=6)
    by_hand = sum(
        w * dist.Normal(m, s).to_event(1).log_prob(x).exp()
        for w, m, s in zip(model.weights, model.loc, model.scale, strict=True)
    )
    torch.testing.assert_close(model.log_evidence(x), by_hand.log(), atol=ATOL, rtol=ATOL)
    loss = pyro.infer.TraceEnum_ELBO(max_plate_nesting=1).loss(model, lambda _: None, x)
    assert -loss == pytest.approx(float(model.log_evidence(x).sum()), abs=1e-9)


def test_draws_of_the_normal_gamma_distribution_match_its_density():
    q = NormalGammaDistribution(*torch.tensor([0.5, 2.0, 3.0, 1.5]))
    h = q.sample((20000,))
    for draws, mean in ((h[:, 0], 0.5), (h[:, 1], 2.0)):
        assert abs(draws.mean() - mean) < 5 * draws.std() / 20000**0.5
    # The density ratio to another member has mean 1, but only if log_prob and sample agree.
    p = NormalGammaDistribution(*torch.tensor([0.4, 2.5, 3.5, 1.7]))
    ratio = (p.log_prob(h) - q.log_prob(h)).exp()
    assert abs(ratio.mean() - 1) < 5 * ratio.std() / 20000**0.5
    wrong = (p.log_prob(h) - NormalGammaDistribution(*torch.tensor([0.5, 1.0, 3.0, 1.5])).log_prob(h)).exp()
    assert abs(wrong.mean() - 1) > 5 * wrong.std() / 20000**0.5


@pytest.mark.parametrize("cls", ALL_MODELS)
def test_data_outside_the_support_are_refused(cls):
    model, good = demo(cls)
    for value in (0.5, -1.0, 2.0, float("nan")):
        if math.isfinite(value) and model.support.check(torch.full_like(good, value)).all():
            continue
        x = good.clone()
        x[4] = value
        for check in ("check_data", "posterior", "log_evidence"):
            if hasattr(model, check):
                with pytest.raises(ValueError, match="row 4"):
                    getattr(model, check)(x)
