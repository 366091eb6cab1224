"""Optimisers beyond torch's: solvers with closed-form or second-order updates, for ``fit(optimiser=...)``."""

from .base import Solver, Target
from .batch_and_match import BatchAndMatch
from .fixed_draws import FixedDraws
from .natural_gradient import NaturalGradient

__all__ = ["BatchAndMatch", "FixedDraws", "NaturalGradient", "Solver", "Target"]
