"""The contract of every model, and every fast formula against its slow, obvious equivalent."""

from __future__ import annotations

from math import log, pi

import pyro
import pyro.distributions as dist
import pytest
import torch
from problems import MODELS, SOLVED, demo, is_discrete
from pyro import poutine
from pyro.infer import MCMC, NUTS, SVI, Predictive, Trace_ELBO
from pyro.infer.autoguide import AutoNormal

from guides import Bernoulli, Local
from models import (
    FactorAnalysis,
    GaussianMean,
    LinearRegression,
    LocalGaussian,
    LocalModel,
    ProbabilisticPCA,
    datasets,
)
from models.gaussian import mean_and_covariance

EXACT = {"atol": 1e-10, "rtol": 0.0}


def log_joint(model, x, h, **kwargs):
    """log p(x, h), shape (N,) for a local model and () for a global one."""
    trace = poutine.trace(poutine.condition(model, {"h": h})).get_trace(x, **kwargs)
    trace.compute_log_prob()
    terms = [trace.nodes[name]["log_prob"] for name in ("h", "x")]
    return terms[0] + (terms[1] if isinstance(model, LocalModel) else terms[1].sum())


def far_from(posterior, seed):
    """An h without symmetry: about one unit from the mean, or a random one for binary latents."""
    generator = torch.Generator().manual_seed(seed)
    if posterior.support.is_discrete:
        return torch.randint(0, 2, posterior.mean.shape, generator=generator).to(posterior.mean.dtype)
    return posterior.mean + torch.randn(posterior.mean.shape, generator=generator, dtype=posterior.mean.dtype)


def bayes_residual(model, x, seed):
    """log p(x, h) − log p(h | x) − log p(x) at a random h: zero at every h if posterior and evidence are right."""
    posterior = model.posterior(x)
    h = far_from(posterior, seed)
    return log_joint(model, x, h) - posterior.log_prob(h) - model.log_evidence(x)


@pytest.mark.parametrize("model_class", MODELS)
class TestContract:
    def test_demo_and_shapes(self, model_class):
        model, x = demo(model_class)
        model.check_data(x)
        h, again = model.simulate(len(x), seed=1)
        assert again.shape == x.shape
        assert h.isfinite().all()
        assert torch.equal(again, model.simulate(len(x), seed=1)[1])
        assert not torch.equal(again, model.simulate(len(x), seed=2)[1])

    def test_simulate_leaves_the_random_state(self, model_class):
        model, x = demo(model_class)
        before = torch.get_rng_state()
        model.simulate(len(x), seed=1)
        assert torch.equal(before, torch.get_rng_state())

    def test_minibatches_average_to_the_whole(self, model_class):
        model, x = demo(model_class)
        h = model.simulate(len(x), seed=3)[0]
        whole = poutine.trace(poutine.condition(model, {"h": h})).get_trace(x).log_prob_sum()
        batches = torch.arange(len(x)).reshape(4, -1)
        parts = [
            poutine.trace(poutine.condition(model, {"h": h[i] if isinstance(model, LocalModel) else h}))
            .get_trace(x[i], index=i, size=len(x))
            .log_prob_sum()
            for i in batches
        ]
        torch.testing.assert_close(torch.stack(parts).mean(), whole, **EXACT)
        assert abs(parts[0] - whole) > 1e-6

    def test_is_plain_pyro(self, model_class):
        model, x = demo(model_class)
        discrete = is_discrete(model_class)
        guide = Local(model, Bernoulli()) if discrete else AutoNormal(model)
        losses = SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO())
        assert torch.tensor([losses.step(x) for _ in range(3)]).isfinite().all()
        sizes = {"size": len(x)}
        assert Predictive(model, num_samples=2)(**sizes)["x"].shape == (2, *x.shape)
        if discrete:
            return
        mcmc = MCMC(NUTS(model), num_samples=2, warmup_steps=2, disable_progbar=True)
        mcmc.run(x)
        assert mcmc.get_samples()["h"].isfinite().all()


@pytest.mark.parametrize("model_class", SOLVED)
class TestTractable:
    def test_bayes_rule_holds_at_every_h(self, model_class):
        model, x = demo(model_class)
        for seed in range(5):
            residual = bayes_residual(model, x, seed)
            torch.testing.assert_close(residual, torch.zeros_like(residual), **EXACT)

    def test_a_q_over_other_vectors_is_refused(self, model_class):
        """A vector of length one would broadcast, and give a wrong number."""
        model, x = demo(model_class)
        wide = dist.Bernoulli(torch.full((1,), 0.3)) if is_discrete(model_class) else dist.Normal(torch.zeros(1), 1.0)
        for q in (wide.to_event(1), wide.expand((17,)).to_event(1)):
            with pytest.raises(ValueError, match="q is over vectors of shape"):
                model.expected_log_likelihood(q, x)

    def test_bayes_rule_fails_for_another_model(self, model_class):
        model, x = demo(model_class)
        other, _ = demo(model_class)
        with torch.no_grad():
            for tensor in (*other.buffers(), *other.parameters()):
                tensor.mul_(1.01)
        posterior = other.posterior(x)
        h = far_from(posterior, seed=0)
        assert (log_joint(model, x, h) - posterior.log_prob(h) - other.log_evidence(x)).abs().max() > 1e-3


def test_evidence_against_dense_gaussians():
    model, x = demo(LocalGaussian)
    dense = dist.MultivariateNormal(model.prior_loc, (model.prior_scale**2 + model.noise_scale**2).diag())
    torch.testing.assert_close(model.log_evidence(x), dense.log_prob(x), **EXACT)

    model, x = demo(FactorAnalysis)
    dense = dist.MultivariateNormal(model.mean, model.loading @ model.loading.mT + (model.noise_scale**2).diag())
    torch.testing.assert_close(model.log_evidence(x), dense.log_prob(x), **EXACT)

    model, x = demo(LinearRegression)
    design = model.covariates
    covariance = design @ (model.prior_scale**2).diag() @ design.mT + model.noise_scale**2 * torch.eye(len(x), dtype=x.dtype)
    torch.testing.assert_close(model.log_evidence(x), dist.MultivariateNormal(0 * x, covariance).log_prob(x), **EXACT)

    model, x = demo(GaussianMean)
    eye, ones = torch.eye(len(x), dtype=x.dtype), torch.ones(len(x), len(x), dtype=x.dtype)
    covariance = model.prior_scale.view(-1, 1, 1) ** 2 * ones + model.noise_scale.view(-1, 1, 1) ** 2 * eye
    dense = dist.MultivariateNormal(model.prior_loc.unsqueeze(-1).expand(-1, len(x)), covariance)
    torch.testing.assert_close(model.log_evidence(x), dense.log_prob(x.mT).sum(), **EXACT)


def test_posterior_against_dense_conditioning():
    model, x = demo(FactorAnalysis)
    k, d = model.loading.shape[1], len(model.loading)
    joint = torch.zeros(k + d, k + d, dtype=x.dtype)
    joint[:k, :k] = torch.eye(k)
    joint[k:, :k] = model.loading
    joint[:k, k:] = model.loading.mT
    joint[k:, k:] = model.loading @ model.loading.mT + (model.noise_scale**2).diag()
    gain = joint[:k, k:] @ torch.linalg.inv(joint[k:, k:])
    loc, covariance = mean_and_covariance(model.posterior(x))
    torch.testing.assert_close(loc, (x - model.mean) @ gain.mT, **EXACT)
    torch.testing.assert_close(covariance[0], joint[:k, :k] - gain @ joint[k:, :k], **EXACT)


class TestProbabilisticPCA:
    def test_maximum_likelihood_is_closed_form(self):
        x = datasets.digits().x.double()
        model = ProbabilisticPCA.maximum_likelihood(x, 8)
        n, d = x.shape
        values = torch.linalg.eigvalsh((x - x.mean(0)).mT @ (x - x.mean(0)) / n).flip(0)
        variance = values[8:].mean()
        tipping_bishop = -n / 2 * (d * log(2 * pi) + values[:8].log().sum() + (d - 8) * variance.log() + d)
        assert abs(model.log_evidence(x).sum() - tipping_bishop) < 1e-8 * abs(tipping_bishop)

    def test_maximum_likelihood_is_stationary_and_best(self):
        x = demo(ProbabilisticPCA)[1]
        best = ProbabilisticPCA.maximum_likelihood(x, 2)
        learned = [torch.nn.Parameter(t.clone()) for t in (best.loading, best.mean, best.noise_scale)]
        model = ProbabilisticPCA(*learned)
        gradients = torch.autograd.grad(model.log_evidence(x).sum(), list(model.parameters()))
        for gradient in gradients:
            torch.testing.assert_close(gradient, torch.zeros_like(gradient), atol=1e-8, rtol=0.0)
        for seed in range(5):
            generator = torch.Generator().manual_seed(seed)
            step = 0.01 * torch.randn(best.loading.shape, generator=generator, dtype=x.dtype)
            worse = ProbabilisticPCA(best.loading + step, best.mean, best.noise_scale)
            assert worse.log_evidence(x).sum() < best.log_evidence(x).sum()


class TestFactorAnalysis:
    def test_parameters_are_learned_and_tensors_are_not(self):
        loading = torch.randn(4, 2)
        assert not list(FactorAnalysis(loading).parameters())
        model = FactorAnalysis(torch.nn.Parameter(loading), torch.zeros(4), torch.nn.Parameter(torch.ones(4)))
        assert {name for name, _ in model.named_parameters()} == {"loading", "noise_scale_unconstrained"}
        torch.testing.assert_close(model.noise_scale, torch.ones(4))


class TestDatasets:
    def test_digits(self):
        raw, scaled, binary = (
            datasets.digits(scaled=s, binarised=b).x for s, b in ((False, False), (True, False), (True, True))
        )
        assert raw.shape == (1797, 64)
        assert (raw.min(), raw.max()) == (0, 16)
        torch.testing.assert_close(16 * scaled, raw)
        assert set(binary.unique().tolist()) == {0.0, 1.0}
        assert torch.equal(binary, (raw > 8).float())

    def test_split_is_seeded_and_a_partition(self):
        data = datasets.diabetes()
        train, test = datasets.train_test_split(data, test=0.25, seed=3)
        again, _ = datasets.train_test_split(data, test=0.25, seed=3)
        assert torch.equal(train.x, again.x)
        assert len(test.x) == round(0.25 * len(data.x))
        assert torch.equal(torch.cat([train.y, test.y]).sort().values, data.y.sort().values)
        assert not torch.equal(train.x, datasets.train_test_split(data, test=0.25, seed=4)[0].x)

    @pytest.mark.parametrize("test", [0.0, 1.0, -0.1])
    def test_empty_split_is_refused(self, test):
        with pytest.raises(ValueError, match="leaves a set empty"):
            datasets.train_test_split(datasets.diabetes(), test=test)

    @pytest.mark.parametrize("model_class", MODELS)
    def test_every_model_can_be_made_from_data(self, model_class):
        model, x = model_class.from_dataset(datasets.diabetes())
        model.check_data(x)
        assert model.simulate(len(x), seed=0)[1].isfinite().all()
