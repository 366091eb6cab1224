"""Solvers find the best λ: exactly for a Gaussian target, else within the error that they report."""

from __future__ import annotations

import dataclasses
import inspect
import math
import random
import warnings

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from problems import PAIRS_WITH_OPTIMUM, TRACTABLE, build, demo, few, shake
from pyro.infer.autoguide import AutoMultivariateNormal
from scipy.optimize import minimize, root
from torch.distributions import kl_divergence

from guides import Amortized, Blocks, Flow, FullRank, Global, Linear, Local, LowRank, MeanField
from inference import NonFiniteLossError, analytic_elbo, best_elbo, fit, optimisers
from inference.optimisers import (
    BatchAndMatch,
    FixedDraws,
    NaturalGradient,
    Pathfinder,
    Solution,
    Solver,
    SolverTask,
    linear_response,
    weighted_rules,
)
from inference.optimisers.fixed_draws import SampleAverage, _matched
from inference.optimisers.gaussian_state import GaussianState
from inference.optimisers.mode import centred
from inference.optimisers.natural_gradient import _stepped
from inference.optimisers.pathfinder import _diagonal, _inverse_hessian
from inference.optimisers.spherical_rules import SphericalRules
from inference.optimisers.weighted_rules import WeightedRules
from inference.programs.isolation import isolated
from models import (
    FactorAnalysis,
    GaussianMean,
    LinearRegression,
    LocalGaussian,
    LocalModel,
    LogisticRegression,
    Model,
    datasets,
)
from models.gaussian import mean_and_covariance

EXPORTS = [getattr(optimisers, name) for name in optimisers.__all__]
SOLVERS = [e for e in EXPORTS if inspect.isclass(e) and issubclass(e, Solver) and not inspect.isabstract(e)]
FIXED = [m for m in TRACTABLE if not list(demo(m)[0].parameters())]
"""Models with nothing to learn, whose posterior is a fixed target."""
EXACT = 1e-6
"""Nats. Solvers must be as exact as this on Gaussian targets."""


def source(model_class):
    return Local if issubclass(model_class, LocalModel) else Global


def require(cls, model, x):
    """Skips a test whose pair this solver refuses, as it may, if it names another optimiser."""
    try:
        with isolated(0), pyro.validation_enabled(False):
            guide = Global(model, FullRank())
            guide.setup(x)
            cls().check(SolverTask(model, guide, (x,), list(guide.parameters())))
    except ValueError as refusal:
        if ": use " in str(refusal):
            pytest.skip(str(refusal))
        raise


def draws_at_random(cls, model, guide, x):
    """Whether the solver moves torch's random state."""
    with isolated(0):
        state = torch.get_rng_state()
        cls().solve(SolverTask(model, guide, (x,), list(guide.parameters())), steps=5)
        return not torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("cls", SOLVERS)
class TestContract:
    def test_is_a_frozen_object(self, cls):
        assert cls() == cls()
        assert "Reference: " in cls.__doc__
        with pytest.raises(dataclasses.FrozenInstanceError):
            cls().draws = 3
        for field in dataclasses.fields(cls)[:1]:
            with pytest.raises(ValueError, match=f"{field.name} must be"):
                cls(**{field.name: -1})

    @pytest.mark.parametrize("model_class", few(FIXED))
    def test_is_exact_for_a_gaussian_target(self, cls, model_class):
        if not cls.exact:
            pytest.skip("is an approximation")
        model, x = demo(model_class)
        guide = build(model, source(model_class), FullRank, x)
        evidence = model.log_evidence(x)
        assert (evidence - analytic_elbo(model, guide.q(x), x)).sum() > 1.0
        done = fit(model, guide, x, steps=200, optimiser=cls())
        assert (evidence - analytic_elbo(model, guide.q(x), x)).sum().abs() < EXACT
        assert done.steps == len(done.nelbo) < 200
        assert done.nelbo[-1] == pytest.approx(float(-evidence.sum()), abs=1e-3)

    @pytest.mark.slow
    def test_in_single_precision_and_badly_conditioned(self, cls):
        """The diabetes regression: ten correlated covariates, where no constant rate of Adam came within 0.09 nats."""
        if not cls.exact:
            pytest.skip("is an approximation")
        model, x = LinearRegression.from_dataset(datasets.diabetes())
        model, x = model.float(), x.float()
        guide = Global(model, FullRank())
        fit(model, guide, x, steps=200, optimiser=cls())
        q = guide.q(x)
        double = dist.MultivariateNormal(q.loc.double(), scale_tril=q.scale_tril.double())
        model, x = model.double(), x.double()
        assert model.log_evidence(x) - analytic_elbo(model, double, x) < 0.01

    @pytest.mark.slow
    def test_latents_with_a_support_of_their_own(self, cls):
        """log s has a Gaussian posterior; the plain model is run draw by draw."""

        def model(x):
            s = pyro.sample("s", dist.LogNormal(torch.zeros(()).double(), 1.0))
            pyro.sample("x", dist.LogNormal(s.log(), 0.5), obs=x)

        x = torch.tensor(6.0, dtype=torch.float64)
        require(cls, model, x)
        guide = Global(model, FullRank())
        fit(model, guide, x, steps=50, optimiser=cls())
        q = guide.q(x)
        precision = 1 + 1 / 0.5**2
        exact = dist.MultivariateNormal((x.log() * 4 / precision).view(1), torch.eye(1).double() / precision)
        assert kl_divergence(q, exact) < EXACT
        moved = dist.MultivariateNormal(exact.loc + 0.01, exact.covariance_matrix)
        assert kl_divergence(q, moved) > EXACT

    def test_leaves_the_random_state_and_repeats_itself(self, cls):
        model = CountRate()
        x = model.x
        require(cls, model, x)
        state = torch.get_rng_state()
        found = []
        for seed in (0, 0, 1):
            guide = build(model, Global, FullRank, x)
            found.append(fit(model, guide, x, steps=5, optimiser=cls(), seed=seed).nelbo)
        assert torch.equal(torch.get_rng_state(), state)
        assert torch.equal(found[0], found[1])
        assert torch.equal(found[0], found[2]) != draws_at_random(cls, model, build(model, Global, FullRank, x), x)

    def test_takes_at_most_so_many_steps(self, cls):
        """The steps do not depend on how many are allowed."""
        count = CountRate()
        require(cls, count, count.x)
        found = {}
        for steps in (2, 4, 300):
            guide = Global(count, FullRank())
            done = fit(count, guide, count.x, steps=steps, optimiser=cls())
            found[steps] = done.nelbo
            assert done.steps == len(done.nelbo) <= steps
        for steps in (2, 4):
            assert torch.equal(found[steps], found[300][:steps])

    def test_leaves_no_global_state_altered(self, cls):
        """After a successful fit and after one that diverges."""

        def broken(x):
            h = pyro.sample("h", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.factor("broken", h.sum() * float("inf"))

        model, x = demo(GaussianMean)
        guide = build(model, Global, FullRank, x)
        pyro.param("mine", torch.ones(2))
        guide.lam.grad = torch.ones_like(guide.lam)
        before = global_state(guide)
        fit(model, guide, x, steps=5, optimiser=cls())
        assert global_state(guide) == before
        require(cls, broken, torch.ones(1))
        with pytest.raises(NonFiniteLossError):
            fit(broken, Global(broken, FullRank()), torch.ones(1), steps=5, optimiser=cls())
        assert global_state(guide) == before

    def test_minibatches_are_refused(self, cls):
        model, x = demo(LocalGaussian)
        with pytest.raises(ValueError, match=r"batch_size=None and transform=None, or use torch's Adam"):
            fit(model, Local(model, FullRank()), x, steps=5, batch_size=10, optimiser=cls())

    def test_a_loss_that_is_not_finite_stops_it(self, cls):
        def model(x):
            h = pyro.sample("h", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.factor("broken", h.sum() * float("inf"))

        require(cls, model, torch.ones(1))
        with pytest.raises(NonFiniteLossError, match="diverged"):
            fit(model, Global(model, FullRank()), torch.ones(1), steps=5, optimiser=cls())


def slow_where_singular(pair):
    """An encoder with more outputs than a low-rank covariance needs has a singular Hessian, which slows Newton's method."""
    _, source, family = pair.values
    marks = [*pair.marks, *([pytest.mark.slow] if source is Amortized and family is LowRank else [])]
    return pytest.param(*pair.values, id=pair.id, marks=marks)


def is_natural(pair):
    """Whether the guide's Fisher information has a closed form: λ is looked up, and its family finds λ from a Gaussian."""
    _, source, family = pair.values
    return source in (Global, Local) and hasattr(family, "inverse")


def global_state(guide):
    """The global state that a fit could change, as comparable values."""
    store = pyro.get_param_store()
    numpy_state = np.random.get_state()
    return {
        "torch": torch.get_rng_state().tolist(),
        "numpy": (numpy_state[0], numpy_state[1].tolist(), *numpy_state[2:]),
        "python": random.getstate(),
        "dtype": torch.get_default_dtype(),
        "grad": torch.is_grad_enabled(),
        "threads": torch.get_num_threads(),
        "validation": (pyro.distributions.is_validation_enabled(), torch.distributions.Distribution._validate_args),
        "store": {name: value.tolist() for name, value in store.items()},
        "warnings": list(warnings.filters),
        "float errors": np.geterr(),
        "gradients": [(p.requires_grad, None if p.grad is None else p.grad.tolist()) for p in guide.parameters()],
    }


class TestFixedDraws:
    @pytest.mark.slow
    @pytest.mark.parametrize(("model_class", "source", "family"), [slow_where_singular(p) for p in PAIRS_WITH_OPTIMUM])
    def test_finds_the_best_of_every_gaussian_family(self, model_class, source, family):
        """Includes families without the posterior, and encoders."""
        model, x = demo(model_class)
        guide = build(model, source, family, x)
        best = best_elbo(model, guide.family, x).sum()
        fit(model, guide, x, steps=300, optimiser=FixedDraws())
        gap = best - analytic_elbo(model, guide.q(x), x).sum()
        assert gap.abs() < (EXACT if source is not Amortized else 1e-3)

    @pytest.mark.slow
    @pytest.mark.parametrize("model_class", [GaussianMean, LinearRegression])
    def test_by_l_bfgs(self, model_class):
        model, x = demo(model_class)
        found = []
        for newton in (True, False):
            guide = build(model, Global, FullRank, x)
            done = fit(model, guide, x, steps=500, optimiser=FixedDraws(newton=newton))
            assert (model.log_evidence(x) - analytic_elbo(model, guide.q(x), x)).abs() < EXACT
            found.append(done.nelbo)
        assert len(found[0]) != len(found[1])

    @pytest.mark.slow
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

    @pytest.mark.slow
    def test_knows_what_its_draws_cost(self):
        """The estimated cost of the noise is right in the mean, and the fit ends below its tolerance."""
        count = CountRate()
        best = count.best().fun
        costs, truths = [], []
        for seed in range(45):
            with isolated(seed):
                guide = Global(count, FullRank())
                guide.setup(count.x)
                target = SolverTask(count, guide, (count.x,), list(guide.parameters()))
                average = SampleAverage(target, 10)
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

    @pytest.mark.slow
    def test_says_whether_its_tolerance_was_met(self):
        count = CountRate()
        ends = {}
        for most, steps in ((4096, 500), (8, 500), (4096, 2)):
            done = fit(
                count, Global(count, FullRank()), count.x, steps=steps, optimiser=FixedDraws(4, tolerance=1e-3, max_draws=most)
            )
            ends[most, steps] = done.stop
        assert ends[4096, 500].converged
        assert not ends[8, 500].converged
        assert "8 draws" in ends[8, 500].reason
        assert not ends[4096, 2].converged
        assert "took the 2 iterations" in ends[4096, 2].reason

    @pytest.mark.slow
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


class TestLinearResponse:
    @pytest.mark.parametrize("model_class", [GaussianMean, LinearRegression])
    def test_is_exact_for_a_gaussian_target(self, model_class):
        """Includes the correlations and variances that the mean field lacks."""
        model, x = demo(model_class)
        guide = build(model, Global, MeanField, x)
        fit(model, guide, x, steps=50, optimiser=NaturalGradient())
        lam = guide.lam.detach().clone()
        covariance = mean_and_covariance(model.posterior(x))[1]
        found = linear_response(model, guide, x, draws=10)
        torch.testing.assert_close(found, covariance, atol=1e-6 * float(covariance.abs().max()), rtol=0.0)
        assert torch.equal(guide.lam.detach(), lam)
        if model_class is LinearRegression:
            assert (guide.q(x).variance < 0.9 * covariance.diagonal()).all()

    @pytest.mark.slow
    def test_a_skewed_target(self):
        """Against the derivative of the best mean in the tilt t · h of log p, as a difference of two solutions."""
        count = CountRate()
        guide = Global(count, MeanField())
        fit(count, guide, count.x, steps=100, optimiser=NaturalGradient())

        def best_mean(tilt):
            return minimize(lambda p: count._nelbo(p[0], math.exp(p[1])) - tilt * p[0], [0.5, -0.5], tol=1e-14).x[0]

        derivative = (best_mean(0.01) - best_mean(-0.01)) / 0.02
        found = np.array([float(linear_response(count, guide, count.x, draws=400, seed=seed)) for seed in range(10)])
        se = found.std(ddof=1) / len(found) ** 0.5
        assert abs(found.mean() - derivative) < 5 * se + 1e-4 < 0.05 * derivative

    def test_bad_input(self):
        model, x = demo(LocalGaussian)
        with pytest.raises(TypeError, match="needs a Global guide, .* but it is Local"):
            linear_response(model, build(model, Local, MeanField, x), x)
        model, x = demo(GaussianMean)
        with pytest.raises(ValueError, match="draws must be at least 2"):
            linear_response(model, Global(model, MeanField()), x, draws=1)
        with pytest.raises(ValueError, match="FixedDraws freezes the noise of Gaussians"):
            linear_response(model, Global(model, Flow()), x)


class TestBatchAndMatch:
    @pytest.mark.slow
    def test_reaches_its_own_fixed_point(self):
        """E_q[∇ log p] = 0 and Var_q[∇ log p] = 1 / Var q, solved by quadrature. This is not the optimum of the ELBO."""
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


def rules_by(model, states, *, seed, x=None):
    """Weighted rules drawn by these states in turn."""
    x = torch.zeros(1, dtype=torch.float64) if x is None else x
    with isolated(seed):
        guide = Global(model, FullRank())
        guide.setup(x)
        rules = WeightedRules(SolverTask(model, guide, (x,), [guide.lam]), GaussianState.of(guide.q(x), guide.family))
        for state in states:
            rules.draw(state, 1)
            rules.slopes(state)
    return rules


def centred_start(model, x, *, loc=None):
    """The state that `centred` returns, the −ELBO that it must beat, and the −ELBO there."""
    with isolated(0):
        guide = Global(model, FullRank())
        guide.setup(x)
        target = SolverTask(model, guide, (x,), [guide.lam])
        at = GaussianState.of(guide.q(x), guide.family)
        at, worst = centred(target, at if loc is None else at._replace(loc=loc))
        return at, worst, WeightedRules(target, at).draw(at, 1)


class TestNaturalGradient:
    @pytest.mark.slow
    @pytest.mark.parametrize(("model_class", "source", "family"), [p for p in PAIRS_WITH_OPTIMUM if is_natural(p)])
    def test_finds_the_best_of_its_families_in_few_steps(self, model_class, source, family):
        """Includes families without the posterior, however strong its correlations. One step may be to a mode that is no
        better than the start, as where it is one of many data; one finds that nothing is left."""
        model, x = demo(model_class)
        guide = build(model, source, family, x)
        best = best_elbo(model, guide.family, x).sum()
        assert best - analytic_elbo(model, guide.q(x), x).sum() > 1.0
        done = fit(model, guide, x, steps=100, optimiser=NaturalGradient())
        assert (best - analytic_elbo(model, guide.q(x), x).sum()).abs() < EXACT
        assert done.steps <= 4

    def test_is_the_natural_gradient(self):
        """One small step changes λ along F⁻¹∇ELBO, with F the Hessian of KL at q and the gradient by autograd."""
        model, x = demo(LinearRegression)
        for family in (FullRank, MeanField):
            guide = build(model, Global, family, x)
            shake(guide, 0.3, seed=1)
            lam = guide.lam.detach().clone()
            q = guide.family(lam)
            fisher = torch.autograd.functional.hessian(lambda v, f=guide.family, q=q: kl_divergence(q, f(v)), lam)
            slope = torch.autograd.functional.jacobian(lambda v, f=guide.family: analytic_elbo(model, f(v), x).sum(), lam)
            natural = torch.linalg.solve(fisher, slope)
            at = GaussianState.of(q, guide.family)
            rules = WeightedRules(SolverTask(model, guide, (x,), [guide.lam]), at)
            rules.draw(at, 1)
            new = _stepped(at, rules.slopes(at), 1e-6)
            step = (guide.family.inverse(new.loc, new.root) - lam) / 1e-6
            torch.testing.assert_close(step, natural, atol=1e-3 * float(natural.abs().max()), rtol=0.0)
            assert (step - slope).abs().max() > 0.1 * natural.abs().max()

    def test_points_are_exact_for_cubics_and_unbiased(self):
        """Against closed-form moments of N(0, I). Exact to third order, only unbiased for the fourth."""
        torch.manual_seed(0)
        noise, weight = SphericalRules((3,), 4).draw(2)
        assert noise.shape == (17, 3, 4)
        torch.testing.assert_close(weight.sum(0), torch.ones(3).double(), atol=1e-10, rtol=0.0)
        second = torch.einsum("kn,kni,knj->nij", weight, noise, noise)
        torch.testing.assert_close(second, torch.eye(4).double().expand(3, 4, 4), atol=1e-10, rtol=0.0)
        for odd in (noise, torch.einsum("kni,knj,knl->knijl", noise, noise, noise)):
            mean = torch.einsum("kn,kn...->n...", weight, odd)
            torch.testing.assert_close(mean, torch.zeros_like(mean), atol=1e-10, rtol=0.0)
        rules = SphericalRules((4000,), 3)
        rules.draw(2)
        noise, weight = rules.draw(2)  # turned away from those before
        fourth = torch.einsum("kn,kni->ni", weight, noise**4)[:, 0]
        se = fourth.std() / len(fourth) ** 0.5
        assert (fourth.mean() - 3).abs() < 5 * se < 0.3
        assert fourth.std() > 0.1

    @pytest.mark.slow
    def test_rules_do_better_together(self):
        """The variance of the mean of eight rules is below an eighth of one rule's, beyond 5 SE, for a quartic. A quartic of
        the directions alone shows the effect of the rotations without that of the pairs of radii."""
        torch.manual_seed(0)
        rules = SphericalRules((1000,), 6)
        found = []
        for _ in range(8):
            noise, weight = rules.draw(1)
            found.append(
                torch.stack(
                    [
                        (weight * noise[..., 0].square() * noise[..., 1].square()).sum(0),
                        (noise[1:, :, 0] / noise[1:].norm(dim=-1)).pow(4).sum(0),
                    ]
                )
            )
        each = torch.stack(found)
        single, together = each.var(-1).mean(0), each.mean(0).var(-1)
        # The relative standard error of a variance over 1000, with the kurtosis of what is averaged.
        centred = each.mean(0) - each.mean(0).mean(-1, keepdim=True)
        se = ((centred**4).mean(-1) / together**2 - 1).sqrt() / 1000**0.5
        assert (8 * together / single < 1 - 5 * se).all()

    @pytest.mark.slow
    def test_weighs_the_quieter_scores_more(self, monkeypatch):
        """Log densities of one noisy and one exactly quadratic direction: their joint curvature has hardly any error."""

        def model(x):
            h = pyro.sample("h", dist.Normal(torch.zeros(4, dtype=torch.float64), 1.0).to_event(1))
            pyro.factor("skewed", -0.05 * h[..., 0] ** 4)

        at = GaussianState(
            torch.zeros(4).double(), torch.diag(torch.tensor([1.6, 1, 1, 1]).double()), torch.ones(4, 4).double()
        )
        errors = []
        for share in (weighted_rules.MIN_SCATTER, 1e12):
            monkeypatch.setattr(weighted_rules, "MIN_SCATTER", share)
            found = [rules_by(model, [at] * 4, seed=seed).slopes(at).curvature[0, 1:] for seed in range(40)]
            errors.append(torch.stack(found).square().mean())
        assert errors[0] < errors[1] / 20

    @pytest.mark.slow
    def test_points_of_one_q_tell_of_another(self):
        """A quartic, whose expectations are known: unbiased within 5 SE for a line that is given, though the points are not
        if they count alike."""

        def model(x):
            h = pyro.sample("h", dist.Normal(torch.zeros(2, dtype=torch.float64), 1.0).to_event(1))
            pyro.factor("quartic", -0.1 * h[..., 0] ** 4)

        def state(mean, variance):
            return GaussianState(
                torch.tensor([mean, 0.0]).double(), torch.eye(2).double() / variance, torch.ones(2, 2).double()
            )

        drawn, at = [state(0.0, 0.5), state(0.6, 0.8)], state(0.3, 0.6)
        exact = 1 + 1.2 * (0.3**2 + 0.6), -0.3 - 0.4 * (0.3**3 + 3 * 0.3 * 0.6)
        found = []
        for seed in range(400):
            rules = rules_by(model, drawn, seed=seed)
            assert len(rules.batches) == 2
            linear = weighted_rules._LinearScore(at.loc, torch.zeros_like(at.loc), at.precision)
            rules.linear = linear
            slopes = rules.slopes(at)
            rules.linear = linear
            points = torch.cat([batch.points for batch in rules.batches])
            rules.log_mixture = weighted_rules._log_density(at, points)[0]
            alike = rules.slopes(at)
            found.append([slopes.curvature[0, 0], slopes.gradient[0], alike.curvature[0, 0], alike.gradient[0]])
        found = torch.tensor(found)
        mean, se = found.mean(0), found.std(0) / len(found) ** 0.5
        assert abs(mean[0] - exact[0]) < 5 * se[0] < 0.1
        assert abs(mean[1] - exact[1]) < 5 * se[1] < 0.1
        assert abs(mean[2] - exact[0]) > 5 * se[2]

    def test_points_far_away_are_forgotten(self):
        """Points of a distant q are dropped, points of a near q are kept. Both give the exact slopes of a Gaussian target."""
        model, x = demo(LinearRegression)
        posterior = dist.MultivariateNormal(*mean_and_covariance(model.posterior(x)))
        near = GaussianState.of(posterior, FullRank().over(len(posterior.loc)))
        far = near._replace(loc=near.loc + 100.0)
        for states, kept in (([far, near], 1), ([near, near], 2), ([near, far], 1)):
            rules = rules_by(model, states, seed=0, x=x)
            assert rules.rules == kept
            slopes = rules.slopes(near)
            scale = float(near.precision.abs().max())
            torch.testing.assert_close(slopes.curvature, near.precision, atol=1e-8 * scale, rtol=0.0)
            torch.testing.assert_close(slopes.gradient, torch.zeros_like(near.loc), atol=1e-8 * scale, rtol=0.0)

    def test_points_must_suffice_for_every_datum(self):
        """One of five data has moved far away. The state does not share memory with λ."""
        model, x = demo(LocalGaussian)
        x = x[:5]
        guide = build(model, Local, FullRank, x)
        (lam,) = guide.parameters()
        at = GaussianState.of(guide.q(x), guide.family)
        loc = at.loc.clone()
        rules = WeightedRules(SolverTask(model, guide, (x,), [lam]), at)
        with isolated(0):
            rules.draw(at, 1)
        with torch.no_grad():
            lam.add_(1.0)
        assert torch.equal(at.loc, loc)
        assert rules.slopes(at, min_rules=0.9) is not None
        loc[0] += 100.0 / at.precision.max() ** 0.5
        assert rules.slopes(at._replace(loc=loc), min_rules=0.5) is None

    def test_a_score_that_is_not_finite_is_not_kept(self):
        def model(x):
            h = pyro.sample("h", dist.Normal(torch.zeros(2, dtype=torch.float64), 1.0).to_event(1))
            pyro.factor("kink", -h[..., 0].square().sqrt())  # at 0, the first point, it has no gradient

        at = GaussianState(torch.zeros(2).double(), torch.eye(2).double(), torch.ones(2, 2).double())
        rules = rules_by(model, [], seed=0)
        with isolated(0):
            assert rules.draw(at, 1) == math.inf
        assert rules.batches == []

    @pytest.mark.slow
    def test_knows_the_noise_of_its_points(self):
        """On average the claimed noise is at least the cost of the error at the optimum, and at most ten times as much."""
        count = CountRate()
        best = count.best()
        loc, precision = torch.tensor([best.x[0]]), torch.tensor([[math.exp(-2 * best.x[1])]])
        at = GaussianState(loc.double(), precision.double(), torch.ones(1, 1).double())
        costs, claims = [], []
        for seed in range(200):
            slopes = rules_by(count, [at] * 12, seed=seed, x=count.x).slopes(at)
            relative = slopes.curvature / at.precision - 1
            costs.append(float(slopes.gradient**2 / at.precision / 2 + relative**2 / 4))
            claims.append(slopes.noise)
        excess = torch.tensor(claims) - torch.tensor(costs)
        assert excess.mean() > -5 * excess.std() / len(excess) ** 0.5
        assert 0 < np.mean(claims) < 10 * np.mean(costs)

    @pytest.mark.slow
    def test_many_latents_far_narrower_than_the_start(self):
        """Without a clamp, q(z) over the q that has drawn z would be e^690 at the start."""

        def model(x):
            pyro.sample("h", dist.Normal(torch.zeros(150, dtype=torch.float64), 0.001).to_event(1))

        guide = Global(model, FullRank())
        done = fit(model, guide, torch.zeros(1, dtype=torch.float64), steps=20, optimiser=NaturalGradient())
        assert done.stop.converged
        variance = guide.q(torch.zeros(1)).covariance_matrix.detach()
        torch.testing.assert_close(variance, 1e-6 * torch.eye(150).double(), atol=1e-16, rtol=0.0)

    @pytest.mark.slow
    @pytest.mark.parametrize("seed", [0, 2])
    def test_a_saddle_is_no_optimum(self, seed):
        """Two modes along the diagonal. The start lies between them, and the points are symmetric about it."""

        def model(x):
            h = pyro.sample("h", dist.Normal(torch.zeros(2, dtype=torch.float64), 1e3).to_event(1))
            a, b = h.unbind(-1)
            pyro.factor("modes", -1e-3 * (a**2 + b**2).square() - 50 * (a * b - 1).square())

        guide = Global(model, FullRank())
        fit(model, guide, torch.zeros(1, dtype=torch.float64), steps=100, optimiser=NaturalGradient(), seed=seed)
        assert guide.q(torch.zeros(1)).mean.abs().min() > 0.5

    @pytest.mark.slow
    def test_a_few_points_that_lie_on_a_line_are_not_enough_to_end(self):
        """A Gaussian with walls at 2.5 sds, which one rule in ten meets: the family's best is 0.08 nats from N(0, 1)."""

        def model(x):
            h = pyro.sample("h", dist.Normal(torch.zeros(1, dtype=torch.float64), 1.0).to_event(1))
            pyro.factor("walls", -50 * (h[..., 0].abs() - 2.5).clamp(min=0.0).square())

        for seed in range(4):
            guide = Global(model, FullRank())
            done = fit(model, guide, torch.zeros(1, dtype=torch.float64), steps=100, optimiser=NaturalGradient(), seed=seed)
            assert done.steps > 5
            assert guide.q(torch.zeros(1)).variance < 0.95

    def test_starts_at_the_mode_unless_that_is_worse(self):
        """Finds the far mode of a regression in 2 dim + 1 scores. In a funnel, which has none, the start is better."""
        model, x = demo(LogisticRegression)
        at, worst, nelbo = centred_start(model, x)
        assert nelbo < worst
        z = at.loc.clone().requires_grad_()
        with pyro.poutine.condition(data={"h": z}):
            score = torch.autograd.grad(pyro.poutine.trace(model).get_trace(x).log_prob_sum(), z)[0]
        assert score.square().sum() * model.prior_scale[0].square() / 2 < 0.1  # nats below the mode, at most
        again, worst, _ = centred_start(model, x, loc=at.loc)
        assert worst == math.inf
        assert torch.equal(again.loc, at.loc)

        def funnel(x):
            v = pyro.sample("v", dist.Normal(torch.zeros((), dtype=torch.float64), 3.0))
            pyro.sample("h", dist.Normal(torch.zeros(8, dtype=torch.float64), (v / 2).exp().unsqueeze(-1)).to_event(1))

        at, worst, nelbo = centred_start(funnel, torch.zeros(1, dtype=torch.float64))
        assert nelbo > worst

    @pytest.mark.slow
    def test_knows_what_its_noise_costs(self):
        """The gap that is left is below the tolerance, in the mean over seeds; the start is not."""
        count = CountRate()
        best = count.best().fun
        guide = Global(count, FullRank())
        guide.setup(count.x)
        assert count.nelbo(guide) - best > 1.0
        for tolerance in (1e-1, 1e-3):
            gaps, claims = [], []
            for seed in range(10):
                guide = Global(count, FullRank())
                done = fit(count, guide, count.x, steps=500, seed=seed, optimiser=NaturalGradient(tolerance=tolerance))
                gaps.append(count.nelbo(guide) - best)
                claims.append(done.stop.distance)
            assert np.mean(gaps) < np.mean(claims)
            assert min(gaps) > -1e-9
            assert np.mean(gaps) < tolerance
        assert np.mean(gaps) > 1e-7

    def test_a_skewed_posterior_of_many_latents(self):
        """Logistic regression, against L-BFGS on the exact ELBO."""
        model, x = demo(LogisticRegression)
        guide = Global(model, FullRank())
        guide.setup(x)
        nodes, mass = (torch.from_numpy(v) for v in np.polynomial.hermite_e.hermegauss(60))

        def nelbo(lam):
            q = guide.family(lam)
            mean, sd = model.covariates @ q.loc, (model.covariates @ q.scale_tril).norm(dim=-1)
            expected = torch.nn.functional.softplus(mean[:, None] + sd[:, None] * nodes) @ mass / mass.sum()
            prior = dist.MultivariateNormal(torch.zeros_like(q.loc), model.prior_scale.square().diag())
            return kl_divergence(q, prior) - (x * mean - expected).sum()

        def value(flat):
            lam = torch.tensor(flat, requires_grad=True)
            loss = nelbo(lam)
            return float(loss.detach()), torch.autograd.grad(loss, lam)[0].numpy()

        best = minimize(value, guide.lam.detach().numpy(), jac=True, method="L-BFGS-B", options={"ftol": 1e-14}).fun
        assert float(nelbo(guide.lam).detach()) - best > 1.0
        done = fit(model, guide, x, steps=100, optimiser=NaturalGradient())
        assert float(nelbo(guide.lam).detach()) - best < 0.01
        assert done.steps < 100

    @pytest.mark.parametrize("family", [LowRank(1), Flow()])
    def test_needs_a_closed_form(self, family):
        model, x = demo(GaussianMean)
        with pytest.raises(ValueError, match=rf"Global\({type(family).__name__}\): use torch's Adam with StickingTheLanding"):
            fit(model, Global(model, family), x, steps=5, optimiser=NaturalGradient())

    def test_needs_one_q_alone(self):
        model = FactorAnalysis(torch.nn.Parameter(torch.ones(2, 1)))
        x = model.simulate(5, seed=0)[1]
        with pytest.raises(ValueError, match="other parameters to learn too .*: use FixedDraws or torch's Adam"):
            fit(model, Local(model, FullRank()), x, steps=5, optimiser=NaturalGradient())
        with pytest.raises(ValueError, match="the guide is AutoMultivariateNormal: use torch's Adam"):
            fit(model, AutoMultivariateNormal(model), x, steps=5, optimiser=NaturalGradient())


class TestPathfinder:
    def test_the_inverse_hessian_is_that_of_l_bfgs(self):
        """Against the product form of the BFGS update, one move at a time, from the same diagonal."""
        torch.manual_seed(0)
        root = torch.randn(6, 6, dtype=torch.float64)
        curvature = root @ root.mT + torch.eye(6).double()
        diagonal = torch.rand(6, dtype=torch.float64) + 0.5
        moves = [(move, curvature @ move) for move in torch.randn(4, 6, dtype=torch.float64)]
        expected = diagonal.diag()
        for move, change in moves:
            one = torch.eye(6).double() - torch.outer(move, change) / (move @ change)
            expected = one @ expected @ one.mT + torch.outer(move, move) / (move @ change)
        found = _inverse_hessian(diagonal, moves)
        torch.testing.assert_close(found, expected, atol=1e-10, rtol=1e-10)
        torch.testing.assert_close(found @ moves[-1][1], moves[-1][0], atol=1e-10, rtol=1e-10)
        assert (found - diagonal.diag()).abs().max() > 0.1

    def test_the_diagonal_part(self):
        """Against the diagonal of the BFGS update of the scaled Hessian. A correct diagonal does not change."""
        old = torch.tensor([0.5, 2.0, 4.0], dtype=torch.float64)
        move = torch.tensor([1.0, -1.0, 0.3], dtype=torch.float64)
        change = torch.tensor([0.4, -2.0, 0.1], dtype=torch.float64)
        hessian = (1 / old).diag() * (change @ (old * change)) / (move @ change)
        turned = hessian @ move
        slow = hessian - torch.outer(turned, turned) / (move @ turned) + torch.outer(change, change) / (move @ change)
        torch.testing.assert_close(_diagonal(old, move, change), 1 / slow.diagonal(), atol=1e-10, rtol=0.0)
        torch.testing.assert_close(_diagonal(old, move, move / old), old, atol=1e-10, rtol=0.0)
        assert (_diagonal(old, move, change) - old).abs().max() > 0.1

    @pytest.mark.parametrize("family", [MeanField, FullRank])
    def test_comes_near_the_best(self, family):
        """Never above the family's best ELBO, and within a tenth of a nat of it for three latents."""
        model, x = demo(LinearRegression)
        guide = build(model, Global, family, x)
        best = best_elbo(model, guide.family, x)
        assert best - analytic_elbo(model, guide.q(x), x) > 10.0
        done = fit(model, guide, x, steps=200, optimiser=Pathfinder())
        assert not done.stop.converged
        assert -1e-9 < best - analytic_elbo(model, guide.q(x), x) < 0.1

    @pytest.mark.slow
    def test_is_a_start(self):
        """A fit from Pathfinder's result begins below the lowest loss of 50 steps from the default start."""
        model, x = LinearRegression.from_dataset(datasets.diabetes())
        model, x = model.double(), x.double()
        guide = Global(model, FullRank())
        fit(model, guide, x, steps=200, optimiser=Pathfinder(paths=1))
        begun = fit(model, guide, x, steps=50, lr=1e-4)
        cold = fit(model, Global(model, FullRank()), x, steps=50)
        assert begun.nelbo.mean() + 5 * begun.nelbo.std() / 50**0.5 < cold.nelbo.min()

    @pytest.mark.slow
    def test_takes_the_better_of_two_modes(self):
        """The mode at 3 has 9 times the mass, and the path from the guide's start ends in the other."""

        def model(x):
            h = pyro.sample("h", dist.Normal(torch.zeros(1).double(), 100.0).to_event(1))
            modes = dist.Normal(torch.tensor([3.0, -1.0], dtype=torch.float64), 0.3).log_prob(h)
            pyro.factor("modes", (modes + torch.tensor([0.9, 0.1]).double().log()).logsumexp(-1))

        x = torch.ones(1, dtype=torch.float64)
        found = []
        for paths in (1, 12):
            guide = Global(model, FullRank())
            fit(model, guide, x, steps=300, optimiser=Pathfinder(paths=paths))
            found.append(float(guide.q(x).mean.detach()))
        assert found[0] == pytest.approx(-1.0, abs=0.1)
        assert found[1] == pytest.approx(3.0, abs=0.1)

    def test_bad_input(self):
        model, x = demo(LocalGaussian)
        with pytest.raises(ValueError, match=r"needs Global .* but the guide is Local\(MeanField\): use FixedDraws"):
            fit(model, Local(model, MeanField()), x, steps=5, optimiser=Pathfinder())
        model, x = demo(GaussianMean)
        with pytest.raises(ValueError, match=r"Global\(Flow\): use FixedDraws"):
            fit(model, Global(model, Flow()), x, steps=5, optimiser=Pathfinder())
        with pytest.raises(ValueError, match="draws must be at least 2"):
            Pathfinder(draws=1)


class Leaky(Solver):
    """A solver that alters global state."""

    def check(self, target):
        pass

    def solve(self, target, *, steps):
        np.seterr(all="ignore")
        return Solution.met([0.0])


def test_the_check_of_global_state_sees_a_leak():
    model, x = demo(GaussianMean)
    guide = build(model, Global, FullRank, x)
    old = np.geterr()
    before = global_state(guide)
    fit(model, guide, x, steps=5, optimiser=Leaky())
    assert global_state(guide) != before
    np.seterr(**old)
    assert global_state(guide) == before


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
        with pytest.raises(ValueError, match="other parameters to learn too .*: use FixedDraws"):
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
