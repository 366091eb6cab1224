"""The table of estimators: bias, variance and cost against known values."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from problems import build, demo, shake

from guides import Global, Local, MeanField, Prior
from inference import gradient_variance
from inference.comparison.gradient_variance import _squared_mean
from inference.objectives import IWAE, ClosedFormEntropy, Loss, ScoreFunction, StickingTheLanding, TraceELBO
from models import GaussianMean, LocalGaussian


class Shrunk:
    """A wrong estimator: 0.8 of the gradient."""

    estimates_elbo = True

    def __call__(self, model, guide, args, kwargs):
        loss = TraceELBO(4)(model, guide, args, kwargs)
        return Loss(loss.value, 0.8 * loss.surrogate)


def pair():
    model, x = demo(GaussianMean)
    guide = build(model, Global, MeanField, x)
    shake(guide, 0.1, seed=0)
    return model, guide, x


def test_the_biased_estimator_is_found():
    model, guide, x = pair()
    table = gradient_variance(model, guide, {"right": TraceELBO(4), "wrong": Shrunk()}, x, draws=300)
    right, wrong = table.estimators
    assert abs(right.squared_bias) < 5 * right.squared_bias_se
    assert wrong.squared_bias > 5 * wrong.squared_bias_se > 0


@pytest.mark.slow
def test_variance_is_that_of_the_estimate():
    """The variance falls as 1 / draws, and the score of a scalar Gaussian has a variance in closed form."""
    model, x = LocalGaussian(1).double(), torch.tensor([[0.7]], dtype=torch.float64)
    guide = Local(model, MeanField(scale=0.5**0.5))
    guide.setup(x)
    guide.table.data[0, 0] = 0.35
    rows = gradient_variance(model, guide, {"1": TraceELBO(), "9": TraceELBO(9)}, x, draws=600).estimators
    # At the exact posterior h = m + s ε the estimate is that of the score alone: ε / s for the mean, (ε² − 1) / s for s,
    # whose variances are 1/s² and 2/s²; the chain rule to softplus⁻¹ s multiplies by (1 − exp(−s))².
    s = 0.5**0.5
    truth = (1 + 2 * (1 - math.exp(-s)) ** 2) / s**2
    assert rows[0].variance == pytest.approx(truth, rel=5 * (14 / 600) ** 0.5)
    assert rows[1].variance == pytest.approx(truth / 9, rel=5 * (14 / 600) ** 0.5)
    assert rows[0].variance_seconds == rows[0].variance * rows[0].seconds > 0


def test_sticking_the_landing_has_no_variance_at_the_posterior():
    model, x = LocalGaussian(1).double(), torch.tensor([[0.7]], dtype=torch.float64)
    guide = Local(model, MeanField(scale=0.5**0.5))
    guide.setup(x)
    guide.table.data[0, 0] = 0.35
    row = gradient_variance(model, guide, {"path": StickingTheLanding()}, x, draws=10).estimators[0]
    assert row.variance < 1e-12


def test_the_bias_is_unknown_if_the_target_is_not_the_elbo():
    model, guide, x = pair()
    frame = gradient_variance(model, guide, {"elbo": ClosedFormEntropy(), "iwae": IWAE(3)}, x, draws=5).to_frame()
    assert list(frame.objective) == ["elbo", "iwae"]
    assert frame.squared_bias.isna().tolist() == [False, True]
    assert frame.variance_seconds.tolist() == (frame.variance * frame.seconds).tolist()


def test_a_plain_pair_has_a_variance_but_no_bias():
    def model(x):
        pyro.sample("x", dist.Normal(pyro.sample("h", dist.Normal(0.0, 1.0)), 1.0), obs=x)

    def guide(x):
        pyro.sample("h", dist.Normal(pyro.param("loc", torch.tensor(0.0)), 1.0))

    row = gradient_variance(model, guide, {"score": ScoreFunction()}, torch.tensor(1.0), draws=10).estimators[0]
    assert row.variance > 0
    assert math.isnan(row.squared_bias)
    assert len(pyro.get_param_store()) == 0


def test_squared_mean_and_its_standard_error_are_unbiased():
    generator = torch.Generator().manual_seed(0)
    mean = torch.tensor([1.0, -0.5, 0.0], dtype=torch.float64)
    scale = torch.tensor([1.0, 0.5, 2.0], dtype=torch.float64)
    found = torch.tensor(
        [_squared_mean(mean + scale * torch.randn(50, 3, generator=generator, dtype=torch.float64)) for _ in range(2000)]
    )
    squares = (found[:, 0] - found[:, 0].mean()).square()
    assert (found[:, 0].mean() - mean @ mean).abs() < 5 * (squares.mean() / 2000).sqrt()
    differences = squares - found[:, 1].square()
    assert differences.mean().abs() < 5 * differences.std() / 2000**0.5
    assert (squares - 0.5 * found[:, 1].square()).mean() > 5 * differences.std() / 2000**0.5


class TestBadInput:
    def test_nothing_to_measure(self):
        model, guide, x = pair()
        with pytest.raises(ValueError, match="no objectives"):
            gradient_variance(model, guide, {}, x)
        with pytest.raises(ValueError, match="at least 3"):
            gradient_variance(model, guide, {"elbo": TraceELBO()}, x, draws=2)
        with pytest.raises(ValueError, match="no gradient"):
            gradient_variance(model, Prior(model), {"elbo": TraceELBO()}, x)
