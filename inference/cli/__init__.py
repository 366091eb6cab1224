"""The command line `taut`: the same names as in Python, typed at a shell."""

from . import single, trust
from .main import app

__all__ = ["app", "single", "trust"]
