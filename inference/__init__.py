"""Inference: fit a guide, measure its ELBO, compare it with the truth."""

from .analytic import analytic_elbo, best_elbo, evidence_minus_kl, kl
from .compare import Comparison, Run, compare
from .elbo import Estimate, Terms, elbo
from .fit import Fit, NonFiniteLossError, cosine, fit
from .reference import LongRun, NotConvergedError, reference
from .storage import to_arviz
from .trust import Decision, Finding, Verdict, trust

__all__ = [
    "Comparison",
    "Decision",
    "Estimate",
    "Finding",
    "Fit",
    "LongRun",
    "NonFiniteLossError",
    "NotConvergedError",
    "Run",
    "Terms",
    "Verdict",
    "analytic_elbo",
    "best_elbo",
    "compare",
    "cosine",
    "elbo",
    "evidence_minus_kl",
    "fit",
    "kl",
    "reference",
    "to_arviz",
    "trust",
]
