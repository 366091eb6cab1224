"""The ELBO: estimated from draws, and in closed form."""

from .closed_form import analytic_elbo, best_elbo, evidence_minus_kl, kl
from .estimate import Estimate, Terms, elbo

__all__ = ["Estimate", "Terms", "analytic_elbo", "best_elbo", "elbo", "evidence_minus_kl", "kl"]
