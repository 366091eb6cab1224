"""Families: maps from an unconstrained λ to a distribution over R^dim."""

from .base import Family
from .blocks import Blocks
from .delta import Delta
from .full_rank import FullRank
from .low_rank import LowRank
from .mean_field import MeanField

__all__ = ["Blocks", "Delta", "Family", "FullRank", "LowRank", "MeanField"]
