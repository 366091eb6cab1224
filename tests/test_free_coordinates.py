"""Entries that a support fixes are judged by nobody: divergence, trust and reference look at free coordinates."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints, transforms
from pyro.infer.autoguide import AutoNormal

from inference import DivergedError, fit, trust
from inference.nuts.base import Chains
from inference.nuts.long_run import NotConvergedError, _checked
from inference.programs.free_coordinates import fixed_by_support, free_coordinates
from inference.programs.log_joint import LogJoint

X = torch.randn(30, 3, generator=torch.Generator().manual_seed(0))


def correlated(x):
    factor = pyro.sample("factor", dist.LKJCholesky(3, 2.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.MultivariateNormal(torch.zeros(3), scale_tril=factor), obs=x)


def shares(x):
    p = pyro.sample("p", dist.Dirichlet(torch.ones(2)))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Categorical(p), obs=(x[:, 0] > 0).long())


def guide_of_correlations(scale):
    def guide(x):
        loc = pyro.param("loc", torch.zeros(3))
        spread = pyro.param("spread", torch.full((3,), scale), constraint=constraints.positive)
        base = dist.Normal(loc, spread).to_event(1)
        pyro.sample("factor", dist.TransformedDistribution(base, transforms.CorrCholeskyTransform()))

    return guide


@pytest.mark.parametrize(
    ("support", "free"), [(constraints.corr_cholesky, 3), (constraints.simplex, 2), (constraints.real, 9)], ids=str
)
def test_the_number_of_free_coordinates(support, free):
    u = torch.randn(5, 3) if support is constraints.corr_cholesky else torch.randn(5, 2)
    values = torch.distributions.transform_to(support)(u) if free < 9 else torch.randn(5, 3, 3)
    kind = type("Kind", (), {"support": support})
    assert free_coordinates(values, kind).reshape(5, -1).shape == (5, free)


def test_a_share_that_is_one_to_rounding_says_nothing():
    values = torch.tensor([[1.0, 1e-20], [1.0, 2e-20]])
    assert free_coordinates(values, dist.Dirichlet(torch.ones(2))).numel() == 0


class TestDivergence:
    def test_ones_and_zeros_are_no_collapse(self):
        assert fit(correlated, guide_of_correlations(0.1), X, steps=5).steps == 5

    def test_a_collapse_of_a_free_coordinate_is_seen(self):
        with pytest.raises(DivergedError, match="'factor' under the guide is numerically zero"):
            fit(correlated, guide_of_correlations(1e-12), X, steps=5, lr=1e-12)


@pytest.mark.parametrize("model", [correlated, shares])
def test_trust_judges_what_is_free(model):
    verdict = trust(fit(model, AutoNormal(model), X, steps=300, lr=0.05), X, draws=1000)
    assert all(finding.error < 1.0 for finding in verdict.findings if finding.error is not None)
    assert not any(name in verdict.weighted.scalars.names for name in ("factor[1,1]", "factor[1,2]"))


class TestReference:
    def test_what_is_fixed(self):
        fixed = fixed_by_support(LogJoint(correlated, X)).reshape(3, 3)
        assert torch.equal(fixed, torch.tensor([[1, 1, 1], [0, 0, 1], [0, 0, 0]]).bool())
        assert not fixed_by_support(LogJoint(shares, X)).any()

    def test_a_run_of_a_model_with_fixed_entries_converges(self):
        u = 0.3 * torch.randn(4, 300, 3, generator=torch.Generator().manual_seed(1))
        run = _checked(LogJoint(correlated, X), Chains(u, 0), {})
        assert run.rhat.isfinite().all()
        assert (run.rhat[:3] == 1.0).all()
        with pytest.raises(NotConvergedError, match="factor"):
            _checked(LogJoint(correlated, X), Chains(u + torch.arange(4.0).reshape(4, 1, 1), 0), {})
