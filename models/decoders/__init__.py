"""Decoders: nets from a latent h_i to what the observation of x_i is made of."""

from .conv import Conv
from .mlp import MLP, Linear

__all__ = ["MLP", "Conv", "Linear"]
