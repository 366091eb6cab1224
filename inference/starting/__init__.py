"""Initial values of a guide, for ``fit(start=...)``."""

from .base import Start
from .from_draws import FromDraws
from .from_guide import FromGuide
from .from_init import FromInit
from .from_pathfinder import FromPathfinder
from .from_prior import FromPrior

__all__ = ["FromDraws", "FromGuide", "FromInit", "FromPathfinder", "FromPrior", "Start"]
