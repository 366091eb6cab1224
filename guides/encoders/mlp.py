"""A multilayer perceptron."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from math import prod

from torch import nn

from ..arguments import counts, maker

__all__ = ["MLP"]


class MLP:
    """Spec of a multilayer perceptron over the flattened x_i.

    A call with the shape of x_i and the size of λ_i, made by `Amortized`, makes the net (*, *shape) → (*, size).

    Args:
        hidden: width of each hidden layer.
        activation: makes the nonlinearity between two layers.
    """

    def __init__(self, hidden: Sequence[int] = (64,), *, activation: Callable[[], nn.Module] = nn.Tanh) -> None:
        self.hidden = counts("MLP: hidden", hidden, empty=True)
        self.activation = maker("MLP: activation", activation)

    def __call__(self, shape: tuple[int, ...], size: int) -> nn.Sequential:
        flatten = nn.Flatten(-len(shape)) if shape else nn.Unflatten(-1, (-1, 1))
        layers: list[nn.Module] = [flatten]
        for features, width in pairwise((prod(shape), *self.hidden, size)):
            layers += [nn.Linear(features, width), self.activation()]
        return nn.Sequential(*layers[:-1])
