"""The command line `taut`: the names of the Python API, typed at a shell. One module for each command."""

from . import compare, evidence, fit, gaps, trust
from .main import app

__all__ = ["app", "compare", "evidence", "fit", "gaps", "trust"]
