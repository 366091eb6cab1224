"""Inference: fit a guide, measure its ELBO, compare it with the truth."""

from .analytic import analytic_elbo, best_elbo, evidence_minus_kl, kl
from .compare import Comparison, Run, compare
from .divergence import DivergedError
from .elbo import Estimate, Terms, elbo
from .evidence import Evidence, Sandwich, ais, ais_reverse, bidirectional, iwae
from .fit import Fit, NonFiniteLossError, cosine, fit
from .fit_many import fit_many
from .gaps import Gaps, Part, gaps
from .gradient_variance import Estimator, GradientVariance, gradient_variance
from .reference import LongRun, NotConvergedError, reference
from .row_ascent import Ascent, fit_unseen
from .storage import to_arviz
from .trust import Decision, Finding, Verdict, trust

__all__ = [
    "Ascent",
    "Comparison",
    "Decision",
    "DivergedError",
    "Estimate",
    "Estimator",
    "Evidence",
    "Finding",
    "Fit",
    "Gaps",
    "GradientVariance",
    "LongRun",
    "NonFiniteLossError",
    "NotConvergedError",
    "Part",
    "Run",
    "Sandwich",
    "Terms",
    "Verdict",
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
    "fit_many",
    "fit_unseen",
    "gaps",
    "gradient_variance",
    "iwae",
    "kl",
    "reference",
    "to_arviz",
    "trust",
]
