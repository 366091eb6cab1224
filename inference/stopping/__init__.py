"""Rules that end a fit, for ``fit(stop=...)``."""

from .base import Closing, Rule, Running, Stop, Watch
from .converged import Converged
from .max_seconds import MaxSeconds
from .max_steps import MaxSteps
from .plateau import Plateau
from .when import When

__all__ = ["Closing", "Converged", "MaxSeconds", "MaxSteps", "Plateau", "Rule", "Running", "Stop", "Watch", "When"]
