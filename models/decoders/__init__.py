"""Decoders: nets from a latent h_i to the parameters of the observation of x_i."""

from .conv import Conv
from .mlp import MLP, Linear

__all__ = ["MLP", "Conv", "Linear"]
