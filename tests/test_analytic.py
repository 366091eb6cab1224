"""The two closed-form routes to the ELBO agree at random λ, and Pyro's own estimator agrees with them."""

from __future__ import annotations

import pytest
import torch
from problems import OPTIMA, PAIRS, TRACTABLE, build, demo, latent_dim, shake
from pyro.infer import Trace_ELBO
from scipy.optimize import minimize

from guides import Blocks, FullRank, LowRank, MeanField, Posterior
from inference import analytic_elbo, best_elbo, elbo, evidence_minus_kl
from models import FactorAnalysis, LinearRegression, LocalModel, ProbabilisticPCA, datasets

LAMBDAS = 20
DRAWS = 30


@pytest.mark.parametrize(("model_class", "source", "family"), PAIRS)
class TestIdentities:
    def test_both_routes_agree(self, model_class, source, family):
        """E_q[log p(x | h)] − KL(q ‖ p(h)) = log p(x) − KL(q ‖ p(h | x))."""
        model, x = demo(model_class)
        for seed in range(LAMBDAS):
            guide = build(model, source, family, x)
            shake(guide, 0.1, seed)
            q = guide.q(x)
            torch.testing.assert_close(analytic_elbo(model, q, x), evidence_minus_kl(model, q, x), atol=1e-10, rtol=0.0)
            assert (analytic_elbo(model, q, x) <= model.log_evidence(x)).all()

    def test_trace_elbo_is_unbiased(self, model_class, source, family):
        """Pyro's Trace_ELBO, its value and its gradient, against the closed form, within 5 standard errors."""
        model, x = demo(model_class)
        for seed in range(LAMBDAS):
            guide = build(model, source, family, x)
            shake(guide, 0.1, seed)
            parameters = list(guide.parameters())
            exact = -analytic_elbo(model, guide.q(x), x).sum()
            gradient = _flat(torch.autograd.grad(exact, parameters))
            # An error of scale is largest along the gradient; a random direction shows every other error.
            directions = torch.stack([gradient / gradient.norm(), torch.randn_like(gradient) / len(gradient) ** 0.5], 1)
            objective = Trace_ELBO(num_particles=16, vectorize_particles=True, max_plate_nesting=1)
            estimates = []
            for _ in range(DRAWS):
                loss = objective.differentiable_loss(model, guide, x)
                slopes = _flat(torch.autograd.grad(loss, parameters)) @ directions
                estimates.append(torch.cat([loss.detach().view(1), slopes]))
            found = torch.stack(estimates)
            truth = torch.cat([exact.detach().view(1), gradient @ directions])
            assert (z_score(found, truth).abs() < 5).all()
            assert (z_score(found, truth + 0.2 * truth.abs().max()).abs() > 5).any()


class TestExactPosterior:
    @pytest.mark.parametrize("model_class", TRACTABLE)
    def test_every_draw_is_the_evidence(self, model_class):
        """log p(x, h) − log p(h | x) = log p(x) for every h, so the one-draw ELBO has no variance at all."""
        model, x = demo(model_class)
        evidence = model.log_evidence(x).sum()
        for _ in range(20):
            loss = Trace_ELBO().differentiable_loss(model, Posterior(model), x)
            torch.testing.assert_close(-loss, evidence, atol=1e-10, rtol=0.0)
        assert elbo(model, Posterior(model), x).se < 1e-10


class TestBestElbo:
    @pytest.mark.parametrize(("model_class", "family_class"), OPTIMA)
    def test_is_the_optimum(self, model_class, family_class):
        """L-BFGS on the analytic ELBO, with one q for each datum, reaches the same value and none above it."""
        model, x = demo(model_class)
        dim = latent_dim(model, x)
        family = family_class.demo(dim)
        bound = family.over(dim)
        rows = (4,) if isinstance(model, LocalModel) else ()
        data = x[:4] if rows else x
        best = best_elbo(model, family, data)
        start = bound.start().double().expand(*rows, bound.size)

        def nelbo(flat):
            lam = torch.tensor(flat).view_as(start).requires_grad_()
            loss = -analytic_elbo(model, bound(lam), data).sum()
            return loss.item(), torch.autograd.grad(loss, lam)[0].flatten().numpy()

        assert nelbo(start.flatten().numpy())[0] + best.sum() > 1.0
        found = minimize(
            nelbo,
            start.flatten().numpy(),
            jac=True,
            method="L-BFGS-B",
            options={"maxiter": 20_000, "maxfun": 20_000, "ftol": 1e-15, "gtol": 1e-9},
        )
        assert abs(-found.fun - best.sum()) < 1e-7

    @pytest.mark.parametrize("model_class", TRACTABLE)
    def test_families_are_ordered(self, model_class):
        model, x = demo(model_class)
        dim = latent_dim(model, x)
        mean_field = best_elbo(model, MeanField(), x)
        blocks = best_elbo(model, Blocks.demo(dim), x)
        full = best_elbo(model, FullRank(), x)
        assert (mean_field <= blocks + 1e-9).all()
        assert (blocks <= full + 1e-9).all()
        torch.testing.assert_close(full, model.log_evidence(x), atol=1e-9, rtol=0.0)


def test_mean_field_is_provably_worse_where_the_posterior_is_correlated():
    for model_class in (LinearRegression, FactorAnalysis):
        model, x = demo(model_class)
        assert (model.log_evidence(x) - best_elbo(model, MeanField(), x)).sum() > 0.1


def test_mean_field_is_exact_on_probabilistic_pca_at_its_maximum_likelihood():
    """At the maximum likelihood the columns of the loading are orthogonal, so the posterior precision is diagonal."""
    x = datasets.digits().x.double()
    model = ProbabilisticPCA.maximum_likelihood(x, 8)
    torch.testing.assert_close(best_elbo(model, MeanField(), x), model.log_evidence(x), atol=1e-8, rtol=0.0)


def test_families_without_a_closed_form_are_refused():
    model, x = LinearRegression.from_dataset(datasets.diabetes())
    with pytest.raises(ValueError, match="LowRank has no closed-form optimum over R\\^10"):
        best_elbo(model, LowRank(2), x)


def test_intractable_models_are_refused():
    with pytest.raises(TypeError, match="inference.elbo"):
        analytic_elbo(torch.nn.Linear(1, 1), torch.distributions.Normal(0.0, 1.0), torch.zeros(1))


def z_score(samples, mean):
    return (samples.mean(0) - mean) / (samples.std(0) / len(samples) ** 0.5)


def _flat(tensors):
    return torch.cat([t.flatten() for t in tensors])
