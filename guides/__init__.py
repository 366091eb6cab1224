"""Guides q_λ(h | x). A guide combines a family, the shape of q, with a source of its parameters λ; any two go together."""

from .encoders import MLP, Conv, Linear, PerStep
from .families import Bernoulli, Blocks, Delta, Family, Flow, FullRank, LowRank, MeanField
from .sources import Amortized, Defensive, Global, Guide, Local, Posterior, Prior, SemiAmortized, Structured, rows

__all__ = [
    "MLP",
    "Amortized",
    "Bernoulli",
    "Blocks",
    "Conv",
    "Defensive",
    "Delta",
    "Family",
    "Flow",
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
    "SemiAmortized",
    "Structured",
    "rows",
]
