"""Diagnostics: each agrees with a known truth, and each detects an error."""

import os
from importlib import import_module
from pathlib import Path

import pyro
import pyro.distributions as dist
import pytest
import torch
from problems import ALL_MODELS, demo
from torch.distributions import MultivariateNormal

from guides import Amortized, Delta, FullRank, Global, Linear, Local, MeanField, Posterior, Prior, Structured
from guides.latents import Latents
from inference import Ascent, fit, fit_unseen
from inference.diagnostics import (
    DataSets,
    by_name,
    c2st,
    calibration,
    error_bounds,
    importance,
    kernel_stein_discrepancy,
    loo,
    mmd,
    moment_errors,
    predictive_coverage,
    psis,
    scalars,
)
from inference.programs.isolation import isolated
from inference.programs.log_joint import LogJoint
from models import (
    EightSchools,
    Funnel,
    GaussianMean,
    HierarchicalModel,
    LinearRegression,
    LocalGaussian,
    LocalModel,
    NormalGamma,
    RegressionModel,
    Tractable,
)
from models.posteriordb import KidScore, problem
from models.posteriordb.problem import ports

DATA = Path(os.environ.get("TAUT_DATA", "")) / "posteriordb"
needs_data = pytest.mark.skipif(not DATA.is_dir() or "TAUT_DATA" not in os.environ, reason="TAUT_DATA names no data folder")


def moved(posterior, scale):
    """The Gaussian with the posterior's mean and `scale` times its standard deviations."""
    if isinstance(posterior, MultivariateNormal):
        return dist.MultivariateNormal(posterior.mean, scale_tril=scale * posterior.scale_tril)
    return dist.Normal(posterior.mean, scale * posterior.stddev).to_event(1)


def local_guide(rows, scale):
    """A `Local` guide whose every q_i is the exact posterior with its standard deviations times `scale`."""
    model = LocalGaussian(2, prior_scale=1.5, noise_scale=0.8).double()
    x = model.simulate(rows, seed=rows)[1]
    guide = Local(model, MeanField())
    guide.setup(x)
    q = moved(model.posterior(x), scale)
    with torch.no_grad():
        guide.table.copy_(torch.cat([q.mean, q.stddev.expm1().log()], -1))
    return model, guide, x


def full_rank(model, x, mean, lower):
    """A full-rank guide with this mean and Cholesky factor of the covariance."""
    guide = Global(model, FullRank())
    guide.setup(x)
    scale = lower.diagonal()
    row, column = torch.tril_indices(len(scale), len(scale), -1)
    unit = lower / scale.unsqueeze(-1)
    with torch.no_grad():
        guide.lam.copy_(torch.cat([mean, scale + (-(-scale).expm1()).log(), unit[row, column]]))
    return guide


class TestImportance:
    @pytest.mark.slow
    def test_khat_per_datum_does_not_grow_with_the_data_and_the_joint_one_does(self):
        rows = (1, 10, 50, 200)
        weighted = [importance(*local_guide(n, 0.75), draws=4000, seed=3) for n in rows]
        joint = [w.khat for w in weighted]
        each = [float(w.khat_per_datum.mean()) for w in weighted]
        # Every datum's q is equally good, so its k̂ does not depend on the number of data.
        assert max(each[1:]) - min(each[1:]) < 0.1
        assert joint[0] < joint[1] < joint[2] < joint[3]
        assert joint[3] > 0.7 > each[3]

    def test_exact_posterior_has_equal_weights(self):
        model, x = demo(LinearRegression)
        weighted = importance(model, Posterior(model), x, draws=500)
        assert weighted.khat == -torch.inf
        assert weighted.ess == pytest.approx(500)
        assert weighted.log_evidence.value == pytest.approx(float(model.log_evidence(x)), abs=1e-9)

    def test_corrected_moments_are_the_posteriors(self):
        model, guide, x = local_guide(20, 1.3)
        weighted = importance(model, guide, x, draws=20_000)
        exact = model.posterior(x)
        wrong, right = weighted.moments(), weighted.corrected()
        sd = exact.stddev.flatten()
        assert ((wrong.sd / sd - 1).abs() > 0.2).all()
        # Standard errors of mean and sd of a Gaussian from the effective draws.
        assert ((right.mean - exact.mean.flatten()).abs() / sd).max() < 5 / weighted.ess**0.5
        assert (right.sd / sd - 1).abs().max() < 5 / (2 * weighted.ess) ** 0.5

    @pytest.mark.slow
    def test_evidence_of_eight_schools_from_a_guide(self):
        model, x = demo(EightSchools)
        guide = Structured(model, MeanField())
        fit(model, guide, x, steps=1500, lr=0.03)
        evidence = importance(model, guide, x, draws=20_000).log_evidence
        assert abs(evidence.value + 31.311347) < 5 * evidence.se
        assert evidence.se < 0.05

    def test_improper_priors_and_point_masses_are_refused(self):
        model, x = KidScore.demo()
        guide = Global(model, FullRank())
        weighted = importance(model, guide, x, draws=200)
        with pytest.raises(ValueError, match="improper prior, so its evidence does not exist"):
            _ = weighted.log_evidence
        model, x = demo(GaussianMean)
        with pytest.raises(ValueError, match="point mass"):
            importance(model, Global(model, Delta()), x)
        with pytest.raises(ValueError, match="draws must be at least 100"):
            importance(model, Posterior(model), x, draws=10)

    def test_psis_of_a_known_tail(self):
        """Weights (1 − U)^−k have Pareto tail index k."""
        u = torch.rand(20_000, 3, dtype=torch.float64)
        true = torch.tensor([0.2, 0.5, 0.9]).double()
        khat = psis(-true * (1 - u).log())[1]
        assert (khat - true).abs().max() < 0.15


class TestBounds:
    def test_bounds_hold_and_grow_with_the_error(self):
        model, x = demo(GaussianMean)
        exact = model.posterior(x)
        widths = []
        for scale in (1.05, 1.2):
            guide = Global(model, MeanField())
            guide.setup(x)
            with torch.no_grad():
                shifted = exact.mean + 0.1 * exact.stddev
                guide.lam.copy_(torch.cat([shifted, (scale * exact.stddev).expm1().log()]))
            weighted = importance(model, guide, x, draws=10_000)
            bounds, q = error_bounds(weighted), weighted.moments()
            assert ((q.mean - exact.mean).abs() <= bounds.mean).all()
            assert ((q.sd - exact.stddev).abs() <= bounds.sd).all()
            widths.append(bounds.sd)
        assert (widths[1] > widths[0]).all()

    def test_no_bound_where_the_variance_is_infinite(self):
        model, guide, x = local_guide(200, 0.6)
        assert error_bounds(importance(model, guide, x)).divergence == torch.inf


def continuous(model_class):
    model, x = model_class.demo()
    return issubclass(model_class, Tractable) and not model.posterior(x).support.is_discrete


class TestCalibration:
    @pytest.mark.slow
    @pytest.mark.parametrize("model_class", [m for m in ALL_MODELS if continuous(m)])
    def test_exact_posteriors_pass(self, model_class):
        model, x = demo(model_class)
        rows = None if isinstance(model, LocalModel) else len(x)
        result = calibration(model, model.posterior, simulations=1000, rows=rows, seed=11)
        assert result.p_value > 0.001
        deviation, band = result.ecdf_band(level=0.9999)
        assert (deviation.abs() <= band + 1e-9).all()

    @pytest.mark.slow
    @pytest.mark.parametrize("model_class", [LocalGaussian, GaussianMean])
    def test_sds_shrunk_by_a_fifth_fail(self, model_class):
        model, x = demo(model_class)
        rows = None if isinstance(model, LocalModel) else len(x)
        result = calibration(model, lambda x: moved(model.posterior(x), 0.8), simulations=1000, rows=rows, seed=12)
        assert result.p_value < 0.001
        deviation, band = result.ecdf_band()
        assert (deviation.abs() > band).any()
        ends = result.histogram()[:, [0, -1]].double().mean()
        assert ends > 1.3 * 1000 / 20

    @pytest.mark.slow
    def test_an_encoder_is_calibrated_on_data_it_has_not_seen(self):
        model, x = demo(LocalGaussian)
        guide = Amortized(model, MeanField(), Linear())
        guide.setup(x)
        before = calibration(model, guide.q, simulations=1000).p_value
        fit(model, guide, x, steps=2500, lr=0.05)
        assert before < 0.001 < calibration(model, guide.q, simulations=1000).p_value

    def test_bad_input(self):
        model, _ = demo(GaussianMean)
        with pytest.raises(ValueError, match="say how many rows"):
            calibration(model, model.posterior)
        with pytest.raises(TypeError, match='a distribution is over the single "h"'):
            calibration(EightSchools(), lambda _: dist.Normal(0.0, 1.0), rows=8, simulations=1)
        with pytest.raises(ValueError, match=r"'h' must have shape \(99, 3\), but q gave \(5, 2\)"):
            calibration(model, lambda _: {"h": torch.zeros(5, 2)}, rows=8, simulations=1)
        with pytest.raises(TypeError, match="q gave int"):
            calibration(model, lambda _: 1, rows=8, simulations=1)
        with pytest.raises(ValueError, match="use simulate"):
            DataSets(model, 8)(size=3)


class Line(RegressionModel):
    """a ~ Normal(0, 1), b ~ Normal(0, 2), x_i ~ Normal(a + b c_i, 0.5): two latents, neither named h, posterior Gaussian."""

    def __init__(self, covariates):
        super().__init__(covariates)

    demo = from_dataset = None
    data_shape = ()

    def prior(self):
        zero = self.covariates.new_zeros(())
        return {"a": pyro.sample("a", dist.Normal(zero, 1.0)), "b": pyro.sample("b", dist.Normal(zero, 2.0))}

    def likelihood(self, h, x=None, index=None):
        return pyro.sample("x", dist.Normal(h["a"] + h["b"] * self.covariates[:, 0], 0.5), obs=x)

    def moments(self, x):
        """Mean and covariance of (a, b)."""
        design = torch.cat([torch.ones_like(self.covariates), self.covariates], 1)
        covariance = torch.linalg.inv(design.mT @ design / 0.25 + torch.tensor([1.0, 0.25]).to(x).diag())
        return covariance @ design.mT @ x / 0.25, covariance

    def draws(self, x, scale=1.0, count=99):
        mean, covariance = self.moments(x)
        h = dist.MultivariateNormal(mean, scale**2 * covariance).sample((count,))
        return {"a": h[:, 0], "b": h[:, 1]}


class Pair(LocalModel):
    """a_i ~ Normal(0, 1), b_i ~ Normal(0, 1), x_i = (a_i, a_i + b_i) + Normal(0, 0.5): two local latents."""

    demo = from_dataset = None
    data_shape = (2,)

    def __init__(self):
        super().__init__()
        self.register_buffer("mix", torch.tensor([[1.0, 0.0], [1.0, 1.0]], dtype=torch.float64))

    def prior(self):
        one = dist.Normal(torch.zeros(1).double(), 1.0).to_event(1)
        return torch.cat([pyro.sample("a", one), pyro.sample("b", one)], -1)

    def likelihood(self, h, x=None):
        return pyro.sample("x", dist.Normal(h @ self.mix.mT, 0.5).to_event(1), obs=x)


@pytest.fixture(scope="module")
def line():
    return Line(torch.linspace(-1, 1, 12).double().unsqueeze(1))


class TestCalibrationOfManyLatents:
    @pytest.mark.slow
    def test_exact_draws_of_two_latents_pass_and_narrow_ones_fail(self, line):
        exact = calibration(line, line.draws, rows=12)
        assert exact.names == ("a", "b")
        assert exact.p_value > 0.001
        narrow = calibration(line, lambda x: line.draws(x, 0.8), rows=12)
        assert (narrow.p_values < 0.001).all()

    @pytest.mark.slow
    def test_a_guide_fitted_to_each_data_set(self, line):
        """Few simulations, because each takes a fit: this tests that draws of a guide are ranked."""
        found = calibration(
            line, lambda x: fit(line, Global(line, FullRank()), x, steps=100, lr=0.1).guide, rows=12, simulations=20
        )
        assert found.ranks.shape == (20, 2)
        assert found.p_value > 0.001
        prior = calibration(line, lambda x: Prior(line), rows=12, simulations=20)
        assert (prior.ranks - found.ranks).abs().float().mean() > 5

    def test_data_sets_are_scored_as_their_model_scores_them(self):
        """A hierarchical model with bounded latents: each row is that data set's log joint."""
        model = EightSchools(centered=False).double()
        sets = DataSets(model, 8)
        u, x = sets.simulate(3, seed=0)
        assert u.shape == (3, 10)
        assert x.shape == (3, 8)
        with isolated(0):
            latents = Latents(sets, (x,), {}, plate="data")
            found = latents.log_joint(sets, torch.stack([u, u + 0.1]), (x,))
        for k, shift in enumerate((0.0, 0.1)):
            for i in range(3):
                torch.testing.assert_close(found[k, i], LogJoint(model, x[i])((u[i] + shift).unsqueeze(0))[0])
        values = sets.quantities({"h": u.unsqueeze(0)})
        assert values["theta"].shape == (1, 3, 8)
        assert (values["tau"] > 0).all()

    @pytest.mark.slow
    def test_one_batched_fit_to_a_thousand_data_sets(self, line):
        sets = DataSets(line, 12)
        start, ascent = Local(sets, FullRank()), Ascent(steps=400, lr=0.1)

        def fitted(x, scale=1.0):
            q = fit_unseen(start, x, ascent=ascent).q(x)
            return dist.MultivariateNormal(q.loc.detach(), scale_tril=scale * q.scale_tril.detach())

        x = sets.simulate(5, seed=3)[1]
        q = fitted(x)
        for i in range(5):
            mean, covariance = line.moments(x[i])
            torch.testing.assert_close(q.loc[i], mean, atol=0.01, rtol=0.0)
            torch.testing.assert_close(q.covariance_matrix[i], covariance, atol=0.002, rtol=0.0)
        result = calibration(sets, fitted)
        assert result.names == ("a", "b")
        assert result.p_value > 0.001
        assert calibration(sets, lambda x: fitted(x, 0.8)).p_value < 0.001

    @pytest.mark.slow
    def test_a_guide_amortized_over_data_sets(self, line):
        """The posterior's mean is linear in the data and its covariance constant, so a linear encoder can be exact."""
        sets = DataSets(line, 12)
        guide = Amortized(sets, FullRank(), Linear())
        x = sets.simulate(2000, seed=5)[1]
        guide.setup(x)
        before = calibration(sets, lambda x: guide)
        fit(sets, guide, x, steps=1500, lr=0.03, batch_size=200)
        after = calibration(sets, lambda x: guide)
        assert before.p_value < 0.001 < after.p_value

    @pytest.mark.slow
    def test_a_local_model_with_two_latents(self):
        model = Pair()
        guide = Amortized(model, FullRank(), Linear())
        x = model.simulate(500, seed=1)[1]
        guide.setup(x)
        before = calibration(model, lambda x: guide)
        fit(model, guide, x, steps=1500, lr=0.03)
        after = calibration(model, lambda x: guide)
        assert after.names == ("a[1]", "b[1]")
        assert before.p_value < 0.001 < after.p_value

    def test_picture(self, line, tmp_path):
        figure = calibration(line, line.draws, rows=12, simulations=50).plot()
        assert len(figure.axes) == 4
        figure.savefig(tmp_path / "ranks.png")


class TestSteinDiscrepancy:
    def test_sees_a_wrong_scale_and_passes_the_truth(self):
        model, x = demo(LinearRegression)
        exact = model.posterior(x)
        right = kernel_stein_discrepancy(model, x, {"h": exact.sample((300,))})
        wrong = kernel_stein_discrepancy(model, x, {"h": moved(exact, 0.7).sample((300,))})
        assert right.p_value > 0.001
        assert wrong.p_value < 0.01
        assert wrong.squared > abs(right.squared)

    def test_is_unbiased_at_the_truth(self):
        model, x = demo(NormalGamma)
        h = model.posterior(x).sample((3000,)).reshape(30, 100, 2)
        values = torch.tensor([kernel_stein_discrepancy(model, x, {"h": part}, bootstrap=1).squared for part in h])
        assert abs(values.mean()) < 5 * values.std() / 30**0.5


class TestTwoSamples:
    @pytest.mark.slow
    def test_c2st_is_a_half_for_the_same_and_one_for_disjoint(self):
        a, b = torch.randn(600, 2), torch.randn(600, 2)
        assert abs(c2st(a, b) - 0.5) < 5 * 0.5 / 1200**0.5
        assert c2st(a, b + 6) > 0.99
        assert 0.6 < c2st(a, b + 1) < 0.9

    @pytest.mark.slow
    def test_mmd(self):
        a, b = torch.randn(300, 2), torch.randn(300, 2)
        assert mmd(a, b).p_value > 0.001
        assert mmd(a, 1.5 * b).p_value < 0.01
        with pytest.raises(ValueError, match="with the same D"):
            mmd(a, b[:, :1])


class TestPredictive:
    @pytest.mark.slow
    def test_coverage_is_the_level_for_a_good_guide_and_not_for_a_wrong_one(self):
        model, _ = demo(LocalGaussian)
        x = model.simulate(2000, seed=3)[1]
        # The prior has not seen the data, so coverage is binomial about the level.
        found = predictive_coverage(model, Prior(model), x, draws=400)
        for level, share in zip(found.levels, found.share, strict=True):
            assert abs(share - level) < 5 * (level * (1 - level) / 4000) ** 0.5 + 1 / 400**0.5 * 0.5
        assert predictive_coverage(model, Prior(model), 3 * x, draws=400).share[0] < 0.4

    def test_loo_is_exact_for_a_regression(self):
        """log p(x_i | x_−i) = log p(x) − log p(x_−i), both in closed form."""
        model, x = demo(LinearRegression)
        exact = []
        for i in range(len(x)):
            keep = torch.arange(len(x)) != i
            rest = LinearRegression(model.covariates[keep], prior_scale=model.prior_scale, noise_scale=model.noise_scale)
            exact.append(float(model.log_evidence(x) - rest.log_evidence(x[keep])))
        posterior = model.posterior(x)
        wide = full_rank(model, x, posterior.mean, 1.2 * posterior.scale_tril)
        for guide in (Posterior(model), wide):
            found = [loo(model, guide, x, draws=4000, seed=seed) for seed in range(10)]
            assert max(f.khat.max() for f in found) < 0.75
            elpd = torch.tensor([f.elpd for f in found])
            assert abs(elpd.mean() - sum(exact)) < 5 * elpd.std() / 10**0.5
            in_sample = model.expected_log_likelihood(model.posterior(x), x)
            assert abs(elpd.mean() - in_sample) > 5 * elpd.std() / 10**0.5

    def test_arvizs_own_loo_is_ours(self, monkeypatch):
        """ArviZ's loo_approximate_posterior and our formula agree on the same draws, up to the smoothing of ties."""
        pytest.importorskip("arviz_stats")
        module = import_module("inference.evidence.psis")
        model, x = demo(LinearRegression)
        posterior = model.posterior(x)
        h = dist.MultivariateNormal(posterior.mean, scale_tril=1.2 * posterior.scale_tril)
        draws = h.sample((4000,))
        pointwise = dist.Normal(draws @ model.covariates.mT, model.noise_scale).log_prob(x)
        ratio = posterior.log_prob(draws), h.log_prob(draws)
        found = module.leave_one_out_density(*ratio, pointwise)
        monkeypatch.setattr(module, "_major", lambda: 0)
        monkeypatch.setattr(module, "_arviz", _by_arviz_one)
        ours = module.leave_one_out_density(*ratio, pointwise)
        for a, b in zip(found, ours, strict=True):
            torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-6)

    def test_loo_refuses_dependent_data(self):
        from models.posteriordb import AutoRegression

        model, x = AutoRegression.demo()
        with pytest.raises(ValueError, match="independent given h"):
            loo(model, Global(model, MeanField()), x)


def _by_arviz_one(log_weights):
    return import_module("arviz_stats.base").array_stats.psislw(-log_weights, axis=-1)


class TestMoments:
    def test_errors(self):
        one = torch.ones(2)
        errors = moment_errors(one, 1.2 * one, 0 * one, 2 * one)
        torch.testing.assert_close(errors.mean, 0.5 * one)
        torch.testing.assert_close(errors.sd, 0.4 * one)
        with pytest.raises(ValueError, match="must have one shape"):
            moment_errors(one, one, one, torch.ones(3))
        with pytest.raises(ValueError, match="must be positive"):
            moment_errors(one, one, one, 0 * one)
        with pytest.raises(ValueError, match="lacks 'tau'"):
            by_name(("mu", "tau"), {"mu": 1.0})

    def test_scalars_have_posteriordbs_names(self):
        table = scalars({"mu": torch.zeros(3), "theta": torch.arange(12.0).reshape(3, 2, 2)})
        assert table.names == ("mu", "theta[1,1]", "theta[1,2]", "theta[2,1]", "theta[2,2]")
        assert table.datum == (0, 0, 0, 1, 1)
        assert table.draws[1].tolist() == [0.0, 4.0, 5.0, 6.0, 7.0]

    def test_funnel_reparametrised_is_exact(self):
        """Its quantities are draws of the centred funnel: the densities differ by the determinant of the map alone."""
        free, centred = Funnel(10, centered=False).double(), Funnel(10).double()
        u = torch.randn(20, 10, dtype=torch.float64)

        def funnel(u):
            return free.quantities({"h": u.unsqueeze(0)})["h"].squeeze(0)

        volume = torch.stack([torch.autograd.functional.jacobian(funnel, one).slogdet().logabsdet for one in u])
        found = centred.target().log_prob(torch.stack([funnel(one) for one in u])) + volume
        torch.testing.assert_close(found, free.target().log_prob(u), atol=1e-10, rtol=0.0)
        assert volume.abs().min() > 0.1


@pytest.mark.slow
@needs_data
@pytest.mark.parametrize("name", sorted(n for n, p in ports().items() if not issubclass(p, HierarchicalModel)))
def test_evidence_of_posteriordb_by_importance_sampling(name):
    """From a full-rank Gaussian with the reference draws' moments in unconstrained space, somewhat widened."""
    model, x, entry = problem(DATA, name)
    if entry.exact is None or entry.exact.log_evidence is None:
        pytest.skip("no evidence is known")
    u = LogJoint(model, x).unconstrain(model.latents(entry.reference.quantities()))
    wide = 1.05 if u.shape[1] > 20 else 1.15
    guide = full_rank(model, x, u.mean(0), wide * torch.linalg.cholesky(u.mT.cov()))
    evidence = importance(model, guide, x, draws=40_000).log_evidence
    assert abs(evidence.value - entry.exact.log_evidence) < 5 * evidence.se
    assert evidence.se < 0.1
