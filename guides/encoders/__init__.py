"""Encoders: nets from a datum x_i to its λ_i."""

from .conv import Conv
from .linear import Linear
from .mlp import MLP
from .per_step import PerStep

__all__ = ["MLP", "Conv", "Linear", "PerStep"]
