"""Bounds on log p(x) that tighten with more computation, with standard errors."""

from .ais import ais, ais_reverse
from .bidirectional import Sandwich, bidirectional
from .estimate import Evidence
from .iwae import iwae

__all__ = ["Evidence", "Sandwich", "ais", "ais_reverse", "bidirectional", "iwae"]
