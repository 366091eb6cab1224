"""Inference: fit a guide, measure its ELBO, compare it with the truth."""

from .analytic import analytic_elbo, best_elbo, evidence_minus_kl, kl
from .compare import Comparison, Run, compare
from .elbo import Estimate, Terms, elbo
from .fit import Fit, NonFiniteLossError, cosine, fit
from .gradient_variance import Estimator, GradientVariance, gradient_variance
from .storage import to_arviz

__all__ = [
    "Comparison",
    "Estimate",
    "Estimator",
    "Fit",
    "GradientVariance",
    "NonFiniteLossError",
    "Run",
    "Terms",
    "analytic_elbo",
    "best_elbo",
    "compare",
    "cosine",
    "elbo",
    "evidence_minus_kl",
    "fit",
    "gradient_variance",
    "kl",
    "to_arviz",
]
