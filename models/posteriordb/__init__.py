"""Posteriors of posteriordb: data, reference draws, and Pyro ports of the Stan models, each checked at the draws.

Reference: Magnusson et al., "posteriordb: testing, benchmarking and developing Bayesian inference algorithms" (2024).
"""

from .gauss_mix import LowDimGaussMix
from .gaussian_process import GPRegression
from .hierarchical import EightSchoolsCentered, EightSchoolsNoncentered, RadonHierarchical
from .loader import Entry, Exact, Reference, entries, load
from .port import Port
from .problem import PortedPosterior, problem
from .regressions import BLR, NES, KidScore, LogMesquite
from .series import AutoRegression, Garch

__all__ = [
    "BLR",
    "NES",
    "AutoRegression",
    "EightSchoolsCentered",
    "EightSchoolsNoncentered",
    "Entry",
    "Exact",
    "GPRegression",
    "Garch",
    "KidScore",
    "LogMesquite",
    "LowDimGaussMix",
    "Port",
    "PortedPosterior",
    "RadonHierarchical",
    "Reference",
    "entries",
    "load",
    "problem",
]
