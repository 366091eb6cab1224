"""Sources: how a guide obtains its λ."""

from .amortized import Amortized
from .base import Guide
from .defensive import Defensive
from .global_ import Global
from .local import Local, rows
from .posterior import Posterior
from .prior import Prior
from .semi_amortized import SemiAmortized
from .structured import Structured

__all__ = ["Amortized", "Defensive", "Global", "Guide", "Local", "Posterior", "Prior", "SemiAmortized", "Structured", "rows"]
