"""Numbers in float32 are right to its rounding, and exact answers are float64's, whatever the number of data."""

import copy
import inspect
import math

import mpmath
import pytest
import torch
from problems import ALL_MODELS
from pyro import poutine

from guides import Global, MeanField
from inference import analytic_elbo, evidence_minus_kl, fit
from inference.engine import Auto, Eager
from inference.objectives import AnalyticELBO
from models import (
    VAE,
    EightSchools,
    GammaPoisson,
    GaussianMean,
    GaussianMixture,
    GaussianProcess,
    LinearRegression,
    LocalModel,
    NormalGamma,
    StateSpace,
    Tractable,
)
from models.normal_gamma import IndependentNormalGamma
from models.observations import ContinuousBernoulli
from models.precision import widened

EXACT = [model for model in ALL_MODELS if hasattr(model, "log_evidence")]
ROUNDING = 2.0**-23
SIZES = [1, 1000, pytest.param(10**6, marks=pytest.mark.slow)]


def with_rows(model_class, n):
    """A float32 model and n data simulated from it."""
    torch.manual_seed(0)
    model, _ = model_class.demo()
    if model_class is LinearRegression:
        model = LinearRegression(torch.randn(n, 3), noise_scale=0.8)
    elif model_class is GaussianProcess:
        model = GaussianProcess(torch.linspace(0.0, 4.0, n).unsqueeze(-1), lengthscale=0.6, noise_scale=0.5, jitter=0.01)
    elif model_class is EightSchools:
        model = EightSchools(10.0 + torch.rand(n))
    return model, model.simulate(n, seed=1)[1]


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("model_class", EXACT)
def test_exact_answers_in_float32_are_those_of_float64(model_class, n):
    if model_class is GaussianProcess and n > 1000:
        pytest.skip("a dense covariance of a million data does not fit")
    model, x = with_rows(model_class, n)
    double, exact = copy.deepcopy(model).double(), x.double()
    # A net, or a learned scale, is evaluated in the model's own precision.
    tolerance = {"rtol": 10 * ROUNDING, "atol": 1e-6} if issubclass(model_class, VAE) else {"rtol": 1e-12, "atol": 1e-9}
    with torch.no_grad():
        torch.testing.assert_close(model.log_evidence(x), double.log_evidence(exact), **tolerance)
        if not issubclass(model_class, Tractable):
            return
        posterior, wide = model.posterior(x), double.posterior(exact)
        assert posterior.sample().dtype in (torch.float32, torch.int64)
        torch.testing.assert_close(posterior.mean.double(), wide.mean, rtol=100 * ROUNDING, atol=1e-5, equal_nan=True)
        found = model.expected_log_likelihood(posterior, x)
        torch.testing.assert_close(found, double.expected_log_likelihood(widened(posterior), exact), **tolerance)
        if n <= 1000 or not issubclass(model_class, LocalModel):
            # The posterior is rounded to float32, which adds its KL from the exact one.
            both = analytic_elbo(model, posterior, x), evidence_minus_kl(model, posterior, x)
            torch.testing.assert_close(*both, rtol=10 * ROUNDING, atol=1e-3 if model_class is GaussianProcess else 1e-6)


def test_a_million_counts():
    model, x = with_rows(GammaPoisson, 10**5)
    x = x.repeat(10, 1)
    shape, rate, total = model.shape.double(), model.rate.double(), x.double().sum(0)
    closed = shape * rate.log() - shape.lgamma() + (shape + total).lgamma() - (shape + total) * (rate + len(x)).log()
    closed = (closed - (x.double() + 1).lgamma().sum(0)).sum()
    assert abs(model.log_evidence(x) - closed) < 1e-6


def test_quadrature_over_many_schools_follows_the_posterior():
    """With 2000 schools the posterior of tau is narrower than a node of a fixed rule; here a fine sum tells the integral."""
    model, x = with_rows(EightSchools, 2000)
    u = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000
    tau = model._tau(u)
    inside = (tau > 1.0) & (tau < 20.0)
    value = model._log_likelihood(tau[inside], x).logsumexp(0) - torch.tensor(20_000.0).double().log()
    assert abs(model.log_evidence(x) - value) < 1e-6


@pytest.mark.parametrize("transition", [0.5, 1.0, 1.5, -1.2])
@pytest.mark.parametrize("steps", [1, 2, 30])
def test_both_posteriors_of_a_growing_series_agree(transition, steps):
    model = StateSpace(steps, transition=transition)
    x = model.simulate(7, seed=0)[1]
    posterior, smoothed = model.posterior(x), model.smooth(x)
    assert posterior.mean.dtype == smoothed.mean.dtype == torch.float32
    assert ((posterior.mean - smoothed.mean) / smoothed.scale).abs().max() < 1e-5 * max(1.0, float(x.abs().max()) / 10)
    torch.testing.assert_close(posterior.variance.sqrt(), smoothed.scale, rtol=1e-6, atol=0)


class TestContinuousBernoulli:
    LOGITS = (0.0, 1e-9, -1e-4, 0.1, -0.99, 1.01, -4.0, 12.0, -16.0, 20.0, -20.0, 60.0, -95.0, 1e4)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    @pytest.mark.parametrize("value", LOGITS)
    def test_against_forty_digits(self, value, dtype):
        rounding = torch.finfo(dtype).eps
        logit = torch.tensor(value, dtype=dtype, requires_grad=True)
        q = ContinuousBernoulli()(logit)
        with mpmath.workdps(40):
            u = mpmath.mpf(logit.item())
            mass = mpmath.log(mpmath.expm1(u) / u) if u else mpmath.mpf(0)
            mean = 1 / (1 - mpmath.exp(-u)) - 1 / u if u else mpmath.mpf(0.5)
            variance = 1 / u**2 - 1 / (4 * mpmath.sinh(u / 2) ** 2) if u else mpmath.mpf(1) / 12

            def close(found, exact, units=20):
                assert abs(found.item() - exact) < units * rounding * max(1, abs(exact))

            for x in (0.0, 0.3, 1.0):
                at = torch.tensor(x, dtype=dtype)
                exact = mpmath.mpf(at.item())
                close(q.log_prob(at), exact * u - mass)
                close(torch.autograd.grad(q.log_prob(at), logit)[0], exact - mean)
                close(q.cdf(at), mpmath.expm1(u * exact) / mpmath.expm1(u) if u else exact)
            share = torch.tensor(0.3, dtype=dtype)
            exact = mpmath.mpf(share.item())
            close(q.icdf(share), mpmath.log1p(exact * mpmath.expm1(u)) / u if u else exact)
            close(q.mean, mean)
            close(q.variance / float(variance), 1, units=1000)
            close(q.entropy(), mass - u * mean)
            assert torch.autograd.grad(q.mean, logit)[0].isfinite()

    def test_divergence_and_draws(self):
        p, q = (ContinuousBernoulli()(torch.tensor(v, dtype=torch.float64)) for v in (30.0, -2.0))
        x = p.sample((20_000,))
        ratio = p.log_prob(x) - q.log_prob(x)
        divergence = torch.distributions.kl_divergence(p, q)
        assert abs(ratio.mean() - divergence) < 5 * ratio.std() / len(x) ** 0.5
        assert abs(x.mean() - p.mean) < 5 * x.std() / len(x) ** 0.5
        plain = [torch.distributions.ContinuousBernoulli(logits=v.logits) for v in (q, q)]
        torch.testing.assert_close(q.log_prob(x), plain[0].log_prob(x), rtol=1e-10, atol=1e-10)


def test_constants_are_those_of_the_models_dtype():
    model, _ = GaussianMixture.demo()
    weights = model.double().weights
    assert abs(weights.sum() - 1) < 1e-15
    x = model.simulate(3, seed=0)[1]
    by_hand = sum(
        w * torch.distributions.Normal(m, s).log_prob(x).sum(-1).exp()
        for w, m, s in zip(weights, model.loc, model.scale, strict=True)
    )
    torch.testing.assert_close(model.log_evidence(x), by_hand.log(), rtol=1e-14, atol=1e-14)
    model, x = NormalGamma.demo()
    model, x = model.double(), x.double()
    q = IndependentNormalGamma(*torch.tensor([0.2, 0.3, 4.0, 2.0], dtype=torch.float64))
    found = model.expected_log_likelihood(q, x)
    squares = ((x - 0.2) ** 2).sum() * 2.0 + len(x) * 0.3**2 * 2.0
    # ψ(4) = 1 + 1/2 + 1/3 − γ.
    log_precision = 11 / 6 - float(mpmath.euler) - math.log(2.0)
    assert abs(found - 0.5 * (len(x) * (log_precision - math.log(2 * math.pi)) - squares)) < 1e-13


def test_a_float32_fit_of_a_closed_form():
    """The loss is float64, the parameters stay float32, and every engine takes the same steps."""
    losses = []
    for engine in (Eager, Auto):
        model, x = GaussianMean.demo()
        guide = Global(model, MeanField())
        done = fit(model, guide, x, steps=100, lr=0.05, objective=AnalyticELBO(), engine=engine)
        losses.append(done.nelbo)
        assert guide.lam.dtype == torch.float32
    assert losses[0][-1] < losses[0][0] - 1.0
    torch.testing.assert_close(*losses, rtol=1e-6, atol=0)


def arguments(model):
    """The constructor's arguments of a demo model, and the names of those that are tensors of real numbers."""
    found, tensors = {}, []
    for name in inspect.signature(type(model).__init__).parameters:
        value = getattr(model, name, None)
        if name == "dim" and value is None:
            value = model.data_shape[0]
        if name == "categories":
            value = len(model.concentration)
        if value is None or name == "self":
            continue
        found[name] = value
        if isinstance(value, torch.Tensor) and value.is_floating_point():
            tensors.append(name)
    return found, tensors


LEARNED = [(cls, name) for cls in ALL_MODELS if not issubclass(cls, VAE) for name in arguments(cls.demo()[0])[1]]


def test_every_kind_of_argument_is_tried():
    assert len(LEARNED) > 30
    assert {cls for cls, _ in LEARNED} == {cls for cls in ALL_MODELS if not issubclass(cls, VAE)}


@pytest.mark.parametrize(("model_class", "name"), LEARNED)
class TestParametersAreLearned:
    def made(self, model_class, name, *, learned=True):
        demo, x = model_class.demo()
        given, _ = arguments(demo)
        given[name] = torch.nn.Parameter(given[name].detach().clone(), requires_grad=learned)
        return model_class(**given), x

    def test_the_log_joint_has_a_gradient(self, model_class, name):
        model, x = self.made(model_class, name)
        demo, _ = model_class.demo()
        (parameter,) = model.parameters()
        torch.testing.assert_close(getattr(model, name), getattr(demo, name))
        h = demo.simulate(len(x), seed=3)[0]
        h = h if isinstance(h, dict) else {"h": h}
        total = poutine.trace(poutine.condition(model, h)).get_trace(x).log_prob_sum()
        assert torch.autograd.grad(total, parameter)[0].any()

    def test_a_frozen_one_stays(self, model_class, name):
        model, _ = self.made(model_class, name, learned=False)
        assert not any(p.requires_grad for p in model.parameters())
        torch.testing.assert_close(getattr(model, name), getattr(model_class.demo()[0], name))
