"""Families: maps from an unconstrained λ to a distribution over R^dim."""

from .base import Family
from .bernoulli import Bernoulli
from .blocks import Blocks
from .delta import Delta
from .flow import Flow
from .full_rank import FullRank
from .low_rank import LowRank
from .mean_field import MeanField

__all__ = ["Bernoulli", "Blocks", "Delta", "Family", "Flow", "FullRank", "LowRank", "MeanField"]
