"""Diagnostics of a fitted q, and of a model against reference draws."""

from ..evidence.psis import psis
from ..programs.quantities import Scalars, quantities, scalars
from .active_units import active_units
from .bounds import Bounds, error_bounds
from .calibration import Calibration, calibration
from .data_sets import DataSets
from .drift import Change, change, drift
from .importance import Importance, ImportanceEvidence, Moments, importance
from .moment_errors import MomentErrors, by_name, moment_errors
from .predictive import LOO, Coverage, loo, predictive_coverage
from .stein import SteinCheck, stein_check
from .stein_discrepancy import SteinDiscrepancy, kernel_stein_discrepancy
from .two_samples import MMD, c2st, mmd

__all__ = [
    "LOO",
    "MMD",
    "Bounds",
    "Calibration",
    "Change",
    "Coverage",
    "DataSets",
    "Importance",
    "ImportanceEvidence",
    "MomentErrors",
    "Moments",
    "Scalars",
    "SteinCheck",
    "SteinDiscrepancy",
    "active_units",
    "by_name",
    "c2st",
    "calibration",
    "change",
    "drift",
    "error_bounds",
    "importance",
    "kernel_stein_discrepancy",
    "loo",
    "mmd",
    "moment_errors",
    "predictive_coverage",
    "psis",
    "quantities",
    "scalars",
    "stein_check",
]
