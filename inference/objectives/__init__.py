"""Objectives: what a fit minimises, and by which gradient estimator."""

from .analytic_elbo import AnalyticELBO
from .base import Loss, Objective
from .score_function import ScoreFunction
from .trace_elbo import TraceELBO

__all__ = ["AnalyticELBO", "Loss", "Objective", "ScoreFunction", "TraceELBO"]
