"""Optimisers beyond torch's, for ``fit(optimiser=...)``: solvers with updates of their own, and steps without a rate."""

from .base import Solution, Solver, Target
from .batch_and_match import BatchAndMatch
from .dog import DoG, DoWG, JointStep
from .fixed_draws import FixedDraws
from .linear_response import linear_response
from .natural_gradient import NaturalGradient
from .pathfinder import Pathfinder

__all__ = [
    "BatchAndMatch",
    "DoG",
    "DoWG",
    "FixedDraws",
    "JointStep",
    "NaturalGradient",
    "Pathfinder",
    "Solution",
    "Solver",
    "Target",
    "linear_response",
]
