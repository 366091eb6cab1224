"""Solvers find the best λ by themselves: exactly where the target is Gaussian, within their own error elsewhere."""

from __future__ import annotations

import dataclasses
import inspect
import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from problems import PAIRS_WITH_OPTIMUM, TRACTABLE, build, demo
from pyro.infer.autoguide import AutoMultivariateNormal
from scipy.optimize import minimize, root

from guides import Amortized, Blocks, FullRank, Global, Linear, Local, LowRank, MeanField
from inference import NonFiniteLossError, analytic_elbo, best_elbo, fit, optimisers
from inference.isolation import isolated
from inference.optimisers import BatchAndMatch, FixedDraws, Solver, Target
from inference.optimisers.fixed_draws import _Average, _matched
from models import FactorAnalysis, GaussianMean, LinearRegression, LocalGaussian, LocalModel, Model, datasets

pytestmark = pytest.mark.slow

EXPORTS = [getattr(optimisers, name) for name in optimisers.__all__]
SOLVERS = [e for e in EXPORTS if inspect.isclass(e) and issubclass(e, Solver) and not inspect.isabstract(e)]
FIXED = [m for m in TRACTABLE if not list(demo(m)[0].parameters())]
"""Models with nothing to learn: their posterior is a fixed target."""
EXACT = 1e-6
"""Nats, from the issue: exact on Gaussian targets."""


def source(model_class):
    return Local if issubclass(model_class, LocalModel) else Global


@pytest.mark.parametrize("cls", SOLVERS)
class TestContract:
    def test_is_a_frozen_object(self, cls):
        assert cls() == cls()
        assert "Reference: " in cls.__doc__
        with pytest.raises(dataclasses.FrozenInstanceError):
            cls().draws = 3
        with pytest.raises(ValueError, match="draws must be"):
            cls(draws=1)

    @pytest.mark.parametrize("model_class", FIXED)
    def test_is_exact_for_a_gaussian_target(self, cls, model_class):
        model, x = demo(model_class)
        guide = build(model, source(model_class), FullRank, x)
        evidence = model.log_evidence(x)
        assert (evidence - analytic_elbo(model, guide.q(x), x)).sum() > 1.0
        done = fit(model, guide, x, steps=200, optimiser=cls())
        assert (evidence - analytic_elbo(model, guide.q(x), x)).sum().abs() < EXACT
        assert done.steps == len(done.nelbo) < 200
        assert done.nelbo[-1] == pytest.approx(float(-evidence.sum()), abs=1e-3)

    def test_in_single_precision_and_badly_conditioned(self, cls):
        """The diabetes regression: ten correlated covariates, where no constant rate of Adam came within 0.09 nats."""
        model, x = LinearRegression.from_dataset(datasets.diabetes())
        model, x = model.float(), x.float()
        guide = Global(model, FullRank())
        fit(model, guide, x, steps=200, optimiser=cls())
        q = guide.q(x)
        double = dist.MultivariateNormal(q.loc.double(), scale_tril=q.scale_tril.double())
        model, x = model.double(), x.double()
        assert model.log_evidence(x) - analytic_elbo(model, double, x) < 0.01

    def test_latents_with_a_support_of_their_own(self, cls):
        """log s has a Gaussian posterior; the plain model is run draw by draw."""

        def model(x):
            s = pyro.sample("s", dist.LogNormal(torch.zeros(()).double(), 1.0))
            pyro.sample("x", dist.LogNormal(s.log(), 0.5), obs=x)

        x = torch.tensor(6.0, dtype=torch.float64)
        guide = Global(model, FullRank())
        fit(model, guide, x, steps=50, optimiser=cls())
        q = guide.q(x)
        precision = 1 + 1 / 0.5**2
        exact = dist.MultivariateNormal((x.log() * 4 / precision).view(1), torch.eye(1).double() / precision)
        assert torch.distributions.kl_divergence(q, exact) < EXACT
        moved = dist.MultivariateNormal(exact.loc + 0.01, exact.covariance_matrix)
        assert torch.distributions.kl_divergence(q, moved) > EXACT

    def test_leaves_the_random_state_and_repeats_itself(self, cls):
        model, x = demo(GaussianMean)
        state = torch.get_rng_state()
        found = []
        for seed in (0, 0, 1):
            guide = build(model, Global, FullRank, x)
            found.append(fit(model, guide, x, steps=5, optimiser=cls(), seed=seed).nelbo)
        assert torch.equal(torch.get_rng_state(), state)
        assert torch.equal(found[0], found[1])
        assert not torch.equal(found[0], found[2])

    def test_minibatches_are_refused(self, cls):
        model, x = demo(LocalGaussian)
        with pytest.raises(ValueError, match=r"batch_size=None and transform=None, or use torch's Adam"):
            fit(model, Local(model, FullRank()), x, steps=5, batch_size=10, optimiser=cls())

    def test_a_loss_that_is_not_finite_stops_it(self, cls):
        def model(x):
            h = pyro.sample("h", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.factor("broken", h.sum() * float("inf"))

        with pytest.raises(NonFiniteLossError, match="diverged"):
            fit(model, Global(model, FullRank()), torch.ones(1), steps=5, optimiser=cls())


def slow_where_singular(pair):
    """An encoder of more numbers than a low-rank covariance needs has a singular Hessian, on which Newton takes long."""
    _, source, family = pair.values
    marks = [*pair.marks, *([pytest.mark.slow] if source is Amortized and family is LowRank else [])]
    return pytest.param(*pair.values, id=pair.id, marks=marks)


class TestFixedDraws:
    @pytest.mark.parametrize(("model_class", "source", "family"), [slow_where_singular(p) for p in PAIRS_WITH_OPTIMUM])
    def test_finds_the_best_of_every_gaussian_family(self, model_class, source, family):
        """Also where the posterior is not in the family, and through an encoder."""
        model, x = demo(model_class)
        guide = build(model, source, family, x)
        best = best_elbo(model, guide.family, x).sum()
        fit(model, guide, x, steps=300, optimiser=FixedDraws())
        gap = best - analytic_elbo(model, guide.q(x), x).sum()
        assert gap.abs() < (EXACT if source is not Amortized else 1e-3)

    def test_pyros_autoguide(self):
        model, x = demo(LinearRegression)
        guide = AutoMultivariateNormal(model, init_scale=0.1)
        done = fit(model, guide, x, steps=100, optimiser=FixedDraws())
        assert done.nelbo[-1] == pytest.approx(float(-model.log_evidence(x)), abs=EXACT)

    @pytest.mark.parametrize("draws", [5, 30])
    def test_noise_is_matched(self, draws):
        noise = _matched(draws, (4, 2, 3), 2)
        assert noise.shape == (draws, 4, 2, 3)
        flat = noise.reshape(draws, 4, 6)
        torch.testing.assert_close(flat.mean(0), torch.zeros(4, 6).double(), atol=1e-10, rtol=0.0)
        covariance = torch.einsum("kni,knj->nij", flat, flat) / draws
        torch.testing.assert_close(covariance.diagonal(dim1=-2, dim2=-1), torch.ones(4, 6).double(), atol=1e-10, rtol=0.0)
        whole = (covariance - torch.eye(6).double()).abs().max()
        assert (whole < 1e-10) == (draws == 30)

    def test_knows_what_its_draws_cost(self):
        """The estimated cost of the noise is right in the mean, and the fit ends below its tolerance."""
        count = CountRate()
        best = count.best().fun
        costs, truths = [], []
        for seed in range(45):
            with isolated(seed):
                guide = Global(count, FullRank())
                guide.setup(count.x)
                target = Target(count, guide, (count.x,), list(guide.parameters()))
                average = _Average(target, 10)
                found = minimize(average.value_and_gradient, average.start(), jac=True, tol=1e-10)
                costs.append(average.cost_of_noise(found.x)[0])
                average.set(found.x)
                truths.append(count.nelbo(guide) - best)
        costs, truths = np.array(costs), np.array(truths)
        assert truths.min() > -1e-8
        ratio = costs.mean() / truths.mean()
        relative = math.hypot(costs.std() / costs.mean(), truths.std() / truths.mean()) / len(costs) ** 0.5
        assert abs(ratio - 1) < 5 * relative < 1.5
        assert truths.mean() > 5 * 1e-4

    def test_doubles_its_draws_until_they_do_not_matter(self):
        count = CountRate()
        best = count.best().fun
        for tolerance in (1e-1, 1e-3):
            gaps = []
            for seed in range(4):
                guide = Global(count, FullRank())
                fit(count, guide, count.x, steps=500, seed=seed, optimiser=FixedDraws(4, tolerance=tolerance))
                gaps.append(count.nelbo(guide) - best)
            assert np.mean(gaps) < tolerance
        assert np.mean(gaps) < 1e-3


class TestBatchAndMatch:
    def test_reaches_its_own_fixed_point(self):
        """E_q[∇ log p] = 0 and Var_q[∇ log p] = 1 / Var q, here solved by quadrature; not the optimum of the ELBO."""
        count = CountRate()
        nodes, mass = np.polynomial.hermite_e.hermegauss(60)
        mass = mass / mass.sum()

        def conditions(point):
            h = point[0] + math.exp(point[1]) * nodes
            score = count.score(h)
            mean = mass @ score
            return [mean, (mass @ (score - mean) ** 2) * math.exp(2 * point[1]) - 1]

        solution = root(conditions, [1.0, -1.0], tol=1e-12)
        assert solution.success
        found = []
        for seed in range(10):
            guide = Global(count, FullRank())
            fit(count, guide, count.x, steps=80, seed=seed, optimiser=BatchAndMatch(64))
            q = guide.q()
            found.append([float(q.loc.detach()), float(q.scale_tril.detach().log())])
        found = np.array(found)
        se = found.std(0, ddof=1) / len(found) ** 0.5
        assert (np.abs(found.mean(0) - solution.x) < 5 * se).all()
        assert (np.abs(found.mean(0) - solution.x - 0.2) > 5 * se).all()

    def test_full_rank_inverts(self):
        torch.manual_seed(0)
        family = FullRank().over(4)
        lam = torch.randn(3, family.size, dtype=torch.float64)
        q = family(lam)
        torch.testing.assert_close(family.inverse(q.loc, q.scale_tril), lam, atol=1e-10, rtol=0.0)


class TestBadInput:
    def test_a_class_is_no_solver(self):
        model, x = demo(GaussianMean)
        with pytest.raises(TypeError, match=r"pass an instance, FixedDraws\(\)"):
            fit(model, Global(model, FullRank()), x, steps=5, optimiser=FixedDraws)

    @pytest.mark.parametrize("family", [MeanField(), LowRank(1), Blocks(2, 1)])
    def test_batch_and_match_needs_full_rank(self, family):
        model, x = demo(GaussianMean)
        with pytest.raises(ValueError, match=r"FullRank\(\)\), but the guide is Global\(.*use FixedDraws"):
            fit(model, Global(model, family), x, steps=5, optimiser=BatchAndMatch())

    def test_batch_and_match_needs_a_guide_of_this_suite(self):
        model, x = demo(GaussianMean)
        with pytest.raises(ValueError, match="AutoMultivariateNormal: use FixedDraws"):
            fit(model, AutoMultivariateNormal(model), x, steps=5, optimiser=BatchAndMatch())
        local, y = demo(LocalGaussian)
        with pytest.raises(ValueError, match=r"Amortized\(FullRank\): use FixedDraws"):
            fit(local, Amortized(local, FullRank(), Linear()), y, steps=5, optimiser=BatchAndMatch())

    def test_batch_and_match_learns_no_model(self):
        model = FactorAnalysis(torch.nn.Parameter(torch.ones(2, 1)))
        x = model.simulate(5, seed=0)[1]
        with pytest.raises(ValueError, match="parameters to learn too: use FixedDraws"):
            fit(model, Local(model, FullRank()), x, steps=5, optimiser=BatchAndMatch())

    def test_fixed_draws_need_gaussian_noise(self):
        def model(x):
            pyro.sample("x", dist.Poisson(pyro.sample("h", dist.Gamma(1.0, 1.0))), obs=x)

        def guide(x):
            pyro.sample("h", dist.Gamma(pyro.param("a", torch.ones(())).exp(), 1.0))

        with pytest.raises(ValueError, match="draws 'h' from Gamma: use a Gaussian family"):
            fit(model, guide, torch.tensor(2.0), steps=5, optimiser=FixedDraws())


class CountRate(Model):
    """h ~ Normal(0, 3), x ~ Poisson(exp h), x = 2: a skewed posterior on the line."""

    x = torch.tensor([[2.0]], dtype=torch.float64)
    data_shape = (1,)
    dtype = torch.float64

    def prior(self):
        return pyro.sample("h", dist.Normal(torch.zeros(1).double(), 3.0).to_event(1))

    def likelihood(self, h, x=None):
        return pyro.sample("x", dist.Poisson(h.exp()).to_event(1), obs=x)

    @classmethod
    def demo(cls, *, seed=0):
        return cls(), cls.x

    @classmethod
    def from_dataset(cls, data):
        return cls(), cls.x

    @staticmethod
    def score(h):
        return 2.0 - np.exp(h) - h / 9

    def nelbo(self, guide):
        q = guide.q()
        return self._nelbo(float(q.loc.detach()), float(q.scale_tril.detach()))

    def best(self):
        return minimize(lambda p: self._nelbo(p[0], math.exp(p[1])), [0.5, -0.5], tol=1e-12)

    @staticmethod
    def _nelbo(loc, scale):
        """In closed form: E exp(h) = exp(m + s²/2)."""
        likelihood = 2 * loc - math.exp(loc + scale**2 / 2) - math.log(2)
        prior = -0.5 * (loc**2 + scale**2) / 9 - math.log(3) - 0.5 * math.log(2 * math.pi)
        return -(likelihood + prior + 0.5 * math.log(2 * math.pi * math.e) + math.log(scale))
