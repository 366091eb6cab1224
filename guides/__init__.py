"""Guides q_λ(h | x) = a family (the shape of q) × a source (where λ comes from). Any family goes with any source."""

from .encoders import MLP, Linear, PerStep
from .families import Blocks, Delta, Family, FullRank, LowRank, MeanField
from .sources import Amortized, Global, Guide, Local, Posterior, Prior, Structured, rows

__all__ = [
    "MLP",
    "Amortized",
    "Blocks",
    "Delta",
    "Family",
    "FullRank",
    "Global",
    "Guide",
    "Linear",
    "Local",
    "LowRank",
    "MeanField",
    "PerStep",
    "Posterior",
    "Prior",
    "Structured",
    "rows",
]
