"""Inference: fit a guide, measure its ELBO, compare it with the truth."""

from .programs.dependencies import DEPENDENCIES as _DEPENDENCIES  # noqa: F401  # isort: skip  (before all that import them)
from .comparison.compare import compare
from .comparison.gaps import Gaps, Part, gaps
from .comparison.gradient_variance import Estimator, GradientVariance, gradient_variance
from .comparison.table import Comparison, Run
from .diagnostics.trust import trust
from .diagnostics.verdict import Decision, Finding, Verdict
from .elbos.closed_form import analytic_elbo, best_elbo, evidence_minus_kl, kl
from .elbos.estimate import Estimate, Terms, elbo
from .evidence import Evidence, Sandwich, ais, ais_reverse, bidirectional, iwae
from .fitting.divergence import DivergedError
from .fitting.fit import Fit, NonFiniteLossError, cosine, fit
from .fitting.many import fit_many
from .fitting.to_arviz import to_arviz
from .fitting.unseen import Ascent, fit_unseen
from .nuts.long_run import LongRun, NotConvergedError, reference

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
