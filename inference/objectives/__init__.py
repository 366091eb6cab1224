"""Objectives: what a fit minimises, and by which gradient estimator."""

from .base import Loss, Objective
from .trace_elbo import TraceELBO

__all__ = ["Loss", "Objective", "TraceELBO"]
