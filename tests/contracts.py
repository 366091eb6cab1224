"""Checks of a model's exact answers. Tests run them on every model in `models.__all__`, and on wrong models that must fail."""

from __future__ import annotations

import math

import torch
from pyro import poutine
from scipy.spatial import cKDTree
from scipy.special import digamma, gammaln

from guides import Prior
from inference import analytic_elbo, evidence_minus_kl, iwae
from models import LocalModel, RegressionModel, Target, Tractable

EXACT = {"atol": 1e-10, "rtol": 1e-10}
DRAWS = 4000


def check_exact_answers(model, x):
    """Runs every check that applies to the model; raises an AssertionError if an answer is wrong. Default dtype: float64."""
    if hasattr(model, "posterior"):
        check_bayes_rule(model, x)
    else:
        check_evidence_by_draws(model, x)
    if isinstance(model, Tractable):
        check_both_routes(model, x)
    if isinstance(model, Target):
        check_density_by_draws(model)


def log_joint(model, x, h):
    """log p(x, h): shape (N,) for a local model, () for a global one."""
    trace = poutine.trace(poutine.condition(model, {"h": h})).get_trace(x)
    trace.compute_log_prob()
    prior, likelihood = (trace.nodes[name]["log_prob"] for name in ("h", "x"))
    return prior + (likelihood if isinstance(model, LocalModel) else likelihood.sum())


def check_bayes_rule(model, x):
    """log p(x, h) − log p(h | x) = log p(x) at every h: here at draws from the posterior and from the prior."""
    posterior = model.posterior(x)
    for seed in range(3):
        torch.manual_seed(seed)
        for h in (posterior.sample(), model.simulate(len(x), seed=seed)[0]):
            found = log_joint(model, x, h) - posterior.log_prob(h)
            torch.testing.assert_close(found, model.log_evidence(x), **EXACT)


def check_evidence_by_draws(model, x):
    """The mean of p(x | h) over the prior is p(x), to a standard error far below one nat."""
    found = iwae(model, Prior(model), x, draws=20_000)
    assert (found.se < 0.1).all(), "the prior's draws cannot tell the evidence: give the model a posterior"
    assert ((found.value - model.log_evidence(x)).abs() < 5 * found.se).all()


def other_posteriors(model, x):
    """The posteriors given other data: a few q that are of the right family and not the posterior given x."""
    fixed = isinstance(model, LocalModel | RegressionModel)
    sizes = [len(x)] * 3 if fixed else [3, len(x), 2 * len(x)]
    return [model.posterior(model.simulate(size, seed=100 + seed)[1]) for seed, size in enumerate(sizes)]


def check_both_routes(model, x):
    """E_q[log p(x | h)] − KL(q ‖ p(h)) = log p(x) − KL(q ‖ p(h | x)), and both are below log p(x)."""
    for q in other_posteriors(model, x):
        torch.testing.assert_close(analytic_elbo(model, q, x), evidence_minus_kl(model, q, x), **EXACT)
        assert (analytic_elbo(model, q, x) < model.log_evidence(x)).all()


def check_density_by_draws(model):
    """A target's density integrates to one: −E[log p(h)] is the entropy of its draws, by their nearest neighbours.

    The estimate is biased upwards by up to 0.4 nats (Funnel, ten dimensions), so half a nat is what it can tell.

    Reference: Kozachenko & Leonenko, "Sample estimate of the entropy of a random vector" (1987).
    """
    torch.manual_seed(0)
    target = model.target()
    h = target.sample((DRAWS,))
    dim = h.shape[-1]
    distances = torch.from_numpy(cKDTree(h.numpy()).query(h.numpy(), k=2)[0][:, 1])
    volume = dim / 2 * math.log(math.pi) - gammaln(dim / 2 + 1)
    entropy = dim * distances.log().mean() + volume + digamma(DRAWS) - digamma(1)
    assert (entropy + target.log_prob(h).mean()).abs() < 0.5
