"""Bounds on log p(x) against the exact log p(x)."""

from __future__ import annotations

import inspect
from math import log
from typing import get_type_hints

import pyro
import pyro.distributions as dist
import pytest
import torch
from problems import MODELS, SOLVED, build, demo, few, is_discrete, shake
from pyro.infer import config_enumerate
from pyro.infer.autoguide import AutoNormal

from guides import Amortized, Bernoulli, Defensive, Delta, FullRank, Global, Linear, Local, MeanField, Posterior, Prior
from inference import ais, ais_reverse, bidirectional, elbo, evidence, fit, gaps, iwae
from inference.evidence.estimate import LogMean
from inference.evidence.psis import psis
from inference.objectives import TraceELBO
from inference.programs.draws import draw_chunks
from inference.programs.isolation import isolated
from models import (
    BinaryVAE,
    EightSchools,
    FactorAnalysis,
    GaussianMean,
    LocalGaussian,
    LocalModel,
    ProbabilisticPCA,
    StateSpace,
)
from models.posteriordb import KidScore


def is_bound(export):
    """Whether an export estimates log p(x) from a model, a guide and data alone."""
    if not inspect.isfunction(export) or get_type_hints(export)["return"] is not evidence.Evidence:
        return False
    parameters = inspect.signature(export).parameters.values()
    return [p.name for p in parameters if p.default is p.empty] == ["model", "guide", "x"]


BOUNDS = [export for export in map(vars(evidence).get, evidence.__all__) if is_bound(export)]
LOCAL = [m for m in SOLVED if issubclass(m, LocalModel)]
CONTINUOUS_LOCAL = [m for m in LOCAL if not is_discrete(m)]
QUICK = {"temperatures": 40, "chains": 32, "leapfrog": 3}


def wide_of(model, x):
    """A guide at the posterior's mean with 1.5 times its sds, so that the weights have a small variance and a light tail."""
    guide = Local(model, FullRank())
    guide.setup(x)
    posterior = model.posterior(x)
    scale = 1.5 * posterior.stddev.detach()
    table = torch.zeros_like(guide.table)
    table[:, : scale.shape[-1]] = posterior.mean.detach()
    table[:, scale.shape[-1] : 2 * scale.shape[-1]] = scale.expm1().log()
    guide.table.data = table
    return guide


def proposal(model, x):
    if is_discrete(type(model)):
        guide = Local(model, Bernoulli())
        guide.setup(x)
        return guide
    return wide_of(model, x)


def near(model, x, scale=1.5):
    """A guide around the posterior of a Gaussian with independent latents, `scale` times as wide."""
    guide = build(model, Local if isinstance(model, LocalModel) else Global, MeanField, x)
    posterior = model.posterior(x)
    with torch.no_grad():
        lam = torch.cat([posterior.mean, (scale * posterior.stddev).expm1().log()], -1)
        next(guide.parameters()).copy_(lam)
    return guide


@pytest.mark.parametrize("model_class", [LocalGaussian, pytest.param(GaussianMean, marks=pytest.mark.slow)])
@pytest.mark.parametrize("bound", BOUNDS)
class TestBound:
    """Every bound, as it is without options."""

    def test_is_the_evidence_at_the_posterior_and_on_its_side_of_it_elsewhere(self, bound, model_class):
        """At the posterior all weights are p(x). A bound that is one nat off fails there, one on the other side elsewhere."""
        model, x = demo(model_class)
        x = x[:10]
        exact = model.log_evidence(x)
        there, elsewhere = (bound(model, near(model, x, scale), x) for scale in (1.0, 1.5))
        assert there.value.shape == there.se.shape == exact.shape
        torch.testing.assert_close(there.value, exact, atol=1e-9, rtol=0.0)
        side = {"lower": 1.0, "upper": -1.0}[elsewhere.bound]
        assert (side * (elsewhere.value - exact) < 5 * elsewhere.se).all()
        assert (elsewhere.se > 0).all()

    @pytest.mark.slow
    def test_repeats_itself_and_changes_nothing(self, bound, model_class):
        model, x = demo(model_class)
        x, guide = x[:3], near(model, x[:3])
        state, before = torch.get_rng_state(), next(guide.parameters()).clone()
        found = [bound(model, guide, x, seed=seed).value for seed in (0, 0, 1)]
        assert torch.equal(torch.get_rng_state(), state)
        assert torch.equal(next(guide.parameters()), before)
        assert torch.equal(found[0], found[1])
        assert not torch.equal(found[0], found[2])

    def test_checks_the_data_first(self, bound, model_class):
        model, x = demo(model_class)
        with pytest.raises(ValueError, match="row 0 of x holds nan"):
            bound(model, Prior(model), x * torch.nan)


def test_bounds_are_found():
    assert {iwae, ais} <= set(BOUNDS)
    assert not {ais_reverse, bidirectional} & set(BOUNDS)


@pytest.mark.parametrize("model_class", few(LOCAL))
class TestIwae:
    def test_agrees_with_the_exact_evidence(self, model_class):
        model, x = demo(model_class)
        exact = model.log_evidence(x).detach()
        found = iwae(model, proposal(model, x), x)
        assert found.draws == 5000
        assert (found.ess > 50).all()
        assert ((found.value - exact).abs() < 5 * found.se).all()
        assert ((found.value - exact - 0.5).abs() > 5 * found.se).all()

    def test_is_exact_at_the_posterior(self, model_class):
        model, x = demo(model_class)
        found = iwae(model, Posterior(model), x, draws=3)
        torch.testing.assert_close(found.value, model.log_evidence(x).detach(), atol=1e-10, rtol=0.0)
        assert (found.se < 1e-6).all()


@pytest.mark.slow
def test_iwae_with_one_sample_is_the_elbo_and_rises_with_more():
    model, x = demo(FactorAnalysis)
    guide = build(model, Amortized, MeanField, x)
    loose = elbo(model, guide, x, draws=4000)
    means, errors = [], []
    for k in (1, 4, 32):
        estimates = torch.tensor([iwae(model, guide, x, draws=k, seed=seed).mean for seed in range(40)])
        means.append(float(estimates.mean()))
        errors.append(float(estimates.std()) / 40**0.5)
    assert abs(means[0] - loose.value / len(x)) < 5 * (errors[0] ** 2 + (loose.se / len(x)) ** 2) ** 0.5
    assert means[0] + 5 * errors[0] < means[1]
    assert means[1] + 5 * errors[1] < means[2]
    assert means[2] < float(model.log_evidence(x).mean()) + 5 * errors[2]


def test_iwae_of_a_global_latent_is_one_number():
    model, x = demo(GaussianMean)
    found = iwae(model, Posterior(model), x, draws=10)
    assert found.value.shape == ()
    torch.testing.assert_close(found.value, model.log_evidence(x), atol=1e-9, rtol=0.0)


@pytest.mark.slow
def test_blocks_of_data_join_up():
    """With more data than one block holds, each bound belongs to its own datum."""
    model, _ = demo(FactorAnalysis)
    x = model.simulate(230, seed=5)[1]
    found = iwae(model, wide_of(model, x), x, draws=2000)
    assert found.value.shape == (230,)
    assert ((found.value - model.log_evidence(x)).abs() < 5 * found.se).all()


def test_log_mean_is_streamed_without_overflow():
    generator = torch.Generator().manual_seed(0)
    weights = 300 * torch.randn(50, 3, generator=generator, dtype=torch.float64) + torch.tensor([0.0, 2000.0, -3000.0])
    mean = LogMean(50)
    for chunk in weights.split(7):
        mean.add(chunk)
    found = mean.result()
    torch.testing.assert_close(found.value, weights.logsumexp(0) - log(50), atol=1e-10, rtol=0.0)
    relative = (weights - weights.amax(0)).exp()
    torch.testing.assert_close(found.se, relative.std(0) / relative.mean(0) / 50**0.5, atol=1e-10, rtol=1e-8)


def test_khat_of_a_stream_is_psis_of_all_the_weights():
    weights = (
        torch.distributions.Pareto(torch.ones(3).double(), 1 / torch.tensor([0.2, 0.6, 1.2]).double()).sample((3000,)).log()
    )
    mean = LogMean(3000)
    for chunk in weights.split(700):
        mean.add(chunk)
    torch.testing.assert_close(mean.result().khat, psis(weights)[1], atol=1e-10, rtol=0.0)
    few = LogMean(99)
    few.add(weights[:99])
    assert few.result().khat.isnan().all()


@pytest.fixture(scope="module")
def schools():
    """Non-centred eight schools and a full-rank Gaussian fitted to it."""
    model, x = demo(EightSchools)
    guide = Global(model, FullRank())
    fit(model, guide, x, steps=1500, lr=0.03, objective=TraceELBO(8))
    return model, guide, x


def z_scores(model, guide, x, truth, *, repeats=40, draws=5000):
    found = [iwae(model, guide, x, draws=draws, seed=seed) for seed in range(repeats)]
    return torch.stack([(f.value - truth) / f.se for f in found]), torch.stack([f.khat for f in found])


@pytest.mark.slow
class TestDefensive:
    """A Gaussian has thinner tails than the posterior of eight schools, where log tau has an exponential tail."""

    def test_evidence_of_eight_schools_with_a_reliable_standard_error(self, schools):
        model, guide, x = schools
        z, khat = z_scores(model, Defensive(guide), x, -31.311347)
        assert z.abs().max() < 5
        # Unbiased and with the right standard error: mean 0 ± 1/√40, mean square 1 ± √(2/40).
        assert abs(z.mean()) < 5 / 40**0.5
        assert (z**2).mean() < 1 + 5 * (2 / 40) ** 0.5
        assert khat.median() < 0.7

    def test_control_the_gaussian_itself_is_biased_and_its_error_too_small(self, schools):
        z, _ = z_scores(*schools, -31.311347)
        assert z.mean() < -5 / 40**0.5
        assert (z**2).mean() > 1 + 5 * (2 / 40) ** 0.5

    def test_density_is_the_mixtures(self):
        """E_q[p(x, h) / q(h)] = p(x) for a guide that is far too narrow, so that its own weights miss most of p(x)."""
        model, x = demo(GaussianMean)
        x = 0 * x[:2]
        guide = Global(model, MeanField(scale=0.02))
        guide.setup(x)
        exact = model.log_evidence(x)
        for share in (0.2, 0.8):
            found = iwae(model, Defensive(guide, share=share), x, draws=20_000)
            assert abs(found.value - exact) < 5 * found.se
            assert found.se < 0.1
        assert iwae(model, guide, x, draws=20_000).value < exact - 1.0

    def test_weights_are_bounded_by_the_likelihood(self, schools):
        model, guide, x = schools
        with isolated(0):
            (chunk,) = draw_chunks(model, Defensive(guide, share=0.3), (x,), draws=5000)
        weights = chunk.log_likelihood + chunk.log_prior - chunk.log_q
        assert (weights <= chunk.log_likelihood - log(0.3) + 1e-9).all()

    @pytest.mark.parametrize(
        ("make", "error", "message"),
        [
            (lambda: Defensive(Global(GaussianMean.demo()[0], MeanField()), share=1.0), ValueError, "between 0 and 1"),
            (lambda: Defensive(Local(FactorAnalysis.demo()[0], MeanField())), TypeError, "takes a Global guide"),
            (lambda: Defensive(Global(KidScore.demo()[0], MeanField())), ValueError, "improper prior"),
        ],
    )
    def test_bad_input(self, make, error, message):
        with pytest.raises(error, match=message):
            make()


@pytest.mark.slow
@pytest.mark.parametrize("model_class", CONTINUOUS_LOCAL)
class TestAis:
    def test_agrees_with_the_exact_evidence(self, model_class):
        model, x = demo(model_class)
        x = x[:30]
        exact = model.log_evidence(x).detach()
        found = ais(model, wide_of(model, x), x, **QUICK)
        assert found.bound == "lower"
        assert ((found.value - exact).abs() < 5 * found.se).all()
        # With so few temperatures the error on a whole series is larger.
        shift = 2.0 if model_class is StateSpace else 0.5
        assert ((found.value - exact - shift).abs() > 5 * found.se).all()

    def test_weights_are_unbiased_from_the_prior_too(self, model_class):
        """E[w / p(x)] = 1 for each datum, for any number of temperatures."""
        model, _ = demo(model_class)
        x = model.simulate(200, seed=1)[1]
        exact = model.log_evidence(x).detach()
        found = ais(model, Prior(model), x, **{**QUICK, "temperatures": 25})
        ratio = (found.value - exact).exp()
        assert abs(ratio.mean() - 1) < 5 * ratio.std() / len(x) ** 0.5
        assert ratio.std() / len(x) ** 0.5 < 0.1

    def test_the_bounds_sandwich_the_evidence(self, model_class):
        model, _ = demo(model_class)
        both = bidirectional(model, 60, **QUICK)
        exact = model.log_evidence(both.x).detach()
        lower, upper = both.lower, both.upper
        assert lower.mean - 5 * lower.mean_se < exact.mean() < upper.mean + 5 * upper.mean_se
        assert (
            (lower.value - 5 * lower.se - 1e-9 < exact) & (exact < upper.value + 5 * upper.se + 1e-9)
        ).float().mean() > 0.95
        assert both.width.mean() < 0.6
        assert not lower.mean - 5 * lower.mean_se < exact.mean() + 5.0 < upper.mean + 5 * upper.mean_se


def test_ais_at_the_posterior_has_constant_weights():
    """If q is the posterior, so is every density of the path, and each weight is p(x) whatever the transitions do."""
    model, x = demo(ProbabilisticPCA)
    guide = wide_of(model, x)
    posterior = model.posterior(x)
    scale = posterior.scale_tril.diagonal(dim1=-2, dim2=-1)
    unit = (posterior.scale_tril / scale.unsqueeze(-1))[..., 1, 0]
    guide.table.data = torch.cat([posterior.mean, scale.expm1().log(), unit.unsqueeze(-1)], -1)
    found = ais(model, guide, x, temperatures=5, chains=4)
    torch.testing.assert_close(found.value, model.log_evidence(x), atol=1e-9, rtol=0.0)


@pytest.mark.slow
def test_ais_improves_on_a_bad_guide():
    """Annealing from the prior is far tighter than importance sampling from it."""
    model, x = demo(ProbabilisticPCA)
    exact = float(model.log_evidence(x).mean())
    annealed = ais(model, Prior(model), x, **QUICK)
    plain = iwae(model, Prior(model), x, draws=QUICK["chains"])
    assert abs(exact - annealed.mean) < 0.5 * (exact - plain.mean)


@pytest.mark.slow
def test_ais_with_bounded_latents_and_plain_models():
    """A Gamma-Poisson model in plain Pyro: the path's densities include the Jacobian of the unconstrained space."""

    def model(x):
        with pyro.plate("data", len(x)):
            rate = pyro.sample("rate", dist.Gamma(x.new_tensor(2.0), x.new_tensor(1.0)))
            return pyro.sample("x", dist.Poisson(rate), obs=x)

    x = torch.tensor([0.0, 1.0, 4.0, 9.0], dtype=torch.float64)
    exact = torch.lgamma(x + 2) - torch.lgamma(x + 1) - (x + 2) * log(2.0)
    found = ais(model, Prior(model), x, **QUICK)
    assert ((found.value - exact).abs() < 5 * found.se).all()
    h = {"rate": torch.distributions.Gamma(x + 2, torch.tensor(2.0, dtype=torch.float64)).sample()}
    upper = ais_reverse(model, Prior(model), x, h, **QUICK)
    assert (exact < upper.value + 5 * upper.se + 0.3).all()


class TestBadInput:
    model, x = FactorAnalysis.demo()

    def test_one_temperature(self):
        with pytest.raises(ValueError, match="temperatures must be at least 2, but is 1.*iwae does the same"):
            ais(self.model, Prior(self.model), self.x, temperatures=1)

    def test_a_point_mass_has_no_weights(self):
        with pytest.raises(ValueError, match="point mass"):
            iwae(self.model, Local(self.model, Delta()), self.x, draws=3)

    @pytest.mark.parametrize("guide_class", [AutoNormal, Posterior])
    def test_ais_needs_the_density_of_q(self, guide_class):
        with pytest.raises(TypeError, match=f"{guide_class.__name__} does not give"):
            ais(self.model, guide_class(self.model), self.x)

    def test_discrete_latents_have_no_gradient(self):
        model, x = BinaryVAE.demo()
        for guide in (Local(model, Bernoulli()), Prior(model)):
            with pytest.raises(ValueError, match="needs gradients in h, but a latent of this model is discrete"):
                ais(model, guide, x)

    def test_ais_of_a_point_mass(self):
        with pytest.raises(ValueError, match="q is a point mass"):
            ais(self.model, Local(self.model, Delta()), self.x)

    @pytest.mark.parametrize("bound", BOUNDS)
    def test_data_beyond_the_numbers_of_their_dtype(self, bound):
        """Their density is zero in float32: the error says so, and not that q is a point mass."""
        options = {"draws": 3} if bound is iwae else {"temperatures": 2, "chains": 2} if bound is ais else {}
        guide = Local(self.model, MeanField())
        with pytest.raises(ValueError, match=r"log p\(x\) of datum 0 \(60 such of 60\) is -inf.*use float64"):
            bound(self.model, guide, 1e30 * self.x, **options)

    def test_reverse_needs_a_number_for_every_latent(self):
        h = {"h": torch.full((60, 2), torch.nan)}
        with pytest.raises(ValueError, match="given draw of 'h' of datum 0 .* is nan"):
            ais_reverse(self.model, Prior(self.model), self.x, h)
        with pytest.raises(TypeError, match="h must be a mapping from names"):
            ais_reverse(self.model, Prior(self.model), self.x, self.x)

    def test_bidirectional(self):
        with pytest.raises(ValueError, match="n must be at least 1"):
            bidirectional(self.model, 0)
        with pytest.raises(TypeError, match="model must be a Model"):
            bidirectional(bounded_above, 3)


def test_the_standard_error_of_one_weight_is_not_a_number():
    model, x = FactorAnalysis.demo()
    assert iwae(model, Prior(model), x, draws=1).se.isnan().all()
    assert not iwae(model, Prior(model), x, draws=2).se.isnan().any()


def bounded_above(x):
    """The support of h depends on that of low."""
    low = pyro.sample("low", dist.Uniform(x.new_tensor(0.0), 3.0))
    h = pyro.sample("h", dist.Uniform(low, low + 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(h, 1.0), obs=x)


class TestSupportsThatDependOnALatent:
    x = torch.tensor([1.0, 2.0, 1.5]).double()

    def exact(self):
        nodes = (torch.arange(500).double() + 0.5) / 500
        h = 3 * nodes.unsqueeze(-1) + nodes
        return torch.distributions.Normal(h.unsqueeze(-1), 1.0).log_prob(self.x).sum(-1).flatten().logsumexp(0) - log(500**2)

    def test_guides_that_draw_inside_them_are_right(self):
        found = iwae(bounded_above, Prior(bounded_above), self.x, draws=1500)
        assert abs(found.value - self.exact()) < 5 * found.se < 0.5

    @pytest.mark.parametrize(
        ("bound", "guide"),
        [(iwae, AutoNormal), (iwae, lambda m: Global(m, MeanField())), (ais, Prior), (ais, lambda m: Global(m, MeanField()))],
    )
    def test_fixed_maps_are_refused(self, bound, guide):
        """Their q misses most of p(x), by 3 nats, with a small standard error."""
        with pytest.raises(ValueError, match="support of the latent 'h' depends on another latent"):
            bound(bounded_above, guide(bounded_above), self.x)


def subsampled(x):
    """Draws its own minibatch."""
    loc = pyro.sample("loc", dist.Normal(x.new_zeros(()), 2.0))
    with pyro.plate("data", len(x), subsample_size=3) as index:
        pyro.sample("x", dist.Normal(loc, 1.0), obs=x[index])


def locally_subsampled(x):
    with pyro.plate("data", len(x), subsample_size=3) as index:
        h = pyro.sample("h", dist.Normal(x.new_zeros(()), 2.0))
        pyro.sample("x", dist.Normal(h, 1.0), obs=x[index])


class TestModelsThatSubsampleByThemselves:
    """They are evaluated on all rows. On three of twenty rows each weight is wrong by tens of nats."""

    x = torch.linspace(-1.0, 2.0, 20).double()

    def test_one_latent(self):
        guide = Global(subsampled, MeanField())
        guide.setup(self.x)
        variance = 1 / (1 / 4 + 20)
        guide.lam.data = torch.tensor([variance * self.x.sum(), variance**0.5]).double()
        guide.lam.data[1] = guide.lam.data[1].expm1().log()
        covariance = 4 * torch.ones(20, 20).double() + torch.eye(20).double()
        exact = torch.distributions.MultivariateNormal(torch.zeros(20).double(), covariance).log_prob(self.x)
        for found in (iwae(subsampled, guide, self.x, draws=3), ais(subsampled, guide, self.x, temperatures=2, chains=2)):
            torch.testing.assert_close(found.value, exact, atol=1e-9, rtol=0.0)

    def test_local_latents(self):
        guide = Local(locally_subsampled, MeanField())
        guide.setup(self.x)
        scale = torch.tensor(0.8).double().sqrt().expm1().log()
        guide.table.data = torch.stack([0.8 * self.x, scale.expand(20)], -1)
        exact = torch.distributions.Normal(0.0, 5**0.5).log_prob(self.x)
        found = [iwae(locally_subsampled, guide, self.x, draws=3)]
        found.append(ais(locally_subsampled, guide, self.x, temperatures=2, chains=2))
        for bound in found:
            torch.testing.assert_close(bound.value, exact, atol=1e-7, rtol=0.0)


@pytest.mark.slow
@pytest.mark.parametrize("model_class", MODELS)
def test_nothing_is_changed(model_class):
    model, x = demo(model_class)
    before = torch.get_rng_state(), {k: v.clone() for k, v in model.state_dict().items()}
    iwae(model, Prior(model), x, draws=5)
    if not is_discrete(model_class):
        ais(model, Prior(model), x, temperatures=2, chains=2)
    assert torch.equal(before[0], torch.get_rng_state())
    assert all(torch.equal(before[1][k], v) for k, v in model.state_dict().items())


@pytest.mark.slow
def test_bounds_of_a_fitted_encoder_on_unseen_data():
    model, x = demo(ProbabilisticPCA)
    guide = Amortized(model, FullRank(), Linear())
    fit(model, guide, x, steps=300, lr=0.03)
    shake(guide, 0.01, seed=0)
    unseen = model.simulate(50, seed=8)[1]
    found = iwae(model, guide, unseen, draws=3000)
    assert ((found.value - model.log_evidence(unseen)).abs() < 5 * found.se).all()

    def test_a_minibatch_as_data_is_refused(self):
        """A model of 1000 rows that is given 20: its weights are random, and their mean is not p(x)."""

        def model(x):
            loc = pyro.sample("loc", dist.Normal(x.new_zeros(()), 2.0))
            with pyro.plate("data", 1000, subsample_size=len(x)):
                pyro.sample("x", dist.Normal(loc, 1.0), obs=x)

        for bound in (iwae, ais):
            with pytest.raises(ValueError, match="takes 20 of the 1000 rows of the plate 'data'.*needs all the data"):
                bound(model, Prior(model), self.x)


@config_enumerate
def mixture(x):
    loc = pyro.sample("loc", dist.Normal(x.new_zeros(()), 2.0))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Bernoulli(x.new_tensor(0.3)))
        pyro.sample("x", dist.Normal(loc + 3 * z, 1.0), obs=x)


class TestEnumeratedLatents:
    """A latent that the model marks for enumeration is summed out, if the guide leaves it out."""

    x = torch.tensor([0.1, 3.2, -0.5, 2.5]).double()

    def guide(self, x):
        pyro.sample("loc", dist.Normal(x.new_tensor(-0.1), 0.8))

    def exact(self):
        loc, step = torch.linspace(-20.0, 20.0, 4001).double(), 0.01
        normal = torch.distributions.Normal
        parts = [normal(loc + 3 * z, 1.0).log_prob(self.x.unsqueeze(-1)) + log(p) for z, p in ((0, 0.7), (1, 0.3))]
        return (torch.stack(parts).logsumexp(0).sum(0) + normal(0.0, 2.0).log_prob(loc)).logsumexp(0) + log(step)

    def test_iwae(self):
        found = iwae(mixture, self.guide, self.x, draws=1000)
        assert found.value.shape == ()
        assert abs(found.value - self.exact()) < 5 * found.se < 0.2

    def test_what_needs_gradients_in_all_latents_says_so(self):
        with pytest.raises(ValueError, match="a latent of this model is discrete: use iwae"):
            ais(mixture, Prior(mixture), self.x)
        with pytest.raises(ValueError, match="latent 'z' is discrete"):
            gaps(mixture, Global(mixture, MeanField()), self.x)
