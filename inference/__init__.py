"""Inference: fit a guide, measure its ELBO, compare it with the truth."""

from .analytic import analytic_elbo, best_elbo, evidence_minus_kl, kl
from .compare import Comparison, Run, compare
from .elbo import Estimate, Terms, elbo
from .evidence import Evidence, Sandwich, ais, ais_reverse, bidirectional, iwae
from .fit import Fit, NonFiniteLossError, cosine, fit
from .gaps import Gaps, Part, gaps
from .gradient_variance import Estimator, GradientVariance, gradient_variance
from .row_ascent import Ascent, fit_unseen
from .storage import to_arviz

__all__ = [
    "Ascent",
    "Comparison",
    "Estimate",
    "Estimator",
    "Evidence",
    "Fit",
    "Gaps",
    "GradientVariance",
    "NonFiniteLossError",
    "Part",
    "Run",
    "Sandwich",
    "Terms",
    "ais",
    "ais_reverse",
    "analytic_elbo",
    "best_elbo",
    "bidirectional",
    "compare",
    "cosine",
    "elbo",
    "evidence_minus_kl",
    "fit",
    "fit_unseen",
    "gaps",
    "gradient_variance",
    "iwae",
    "kl",
    "to_arviz",
]
