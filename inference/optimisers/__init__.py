"""Optimisers beyond torch's, for ``fit(optimiser=...)``: solvers with their own updates, and steps without a learning rate."""

from .base import Solution, Solver, SolverTask
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
    "SolverTask",
    "linear_response",
]
