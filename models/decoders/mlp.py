"""Decoders of linear layers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from math import prod

from torch import nn

from ..arguments import counts, maker

__all__ = ["MLP", "Linear"]


class MLP:
    """Spec of a multilayer perceptron. A call with k and the shape of x_i makes the net (*, k) → (*, *shape).

    The last layer has no bias, because a `VAE` adds its own offset.

    Args:
        hidden: width of each hidden layer.
        activation: makes the nonlinearity between two layers.
    """

    def __init__(self, hidden: Sequence[int] = (64,), *, activation: Callable[[], nn.Module] = nn.Tanh) -> None:
        self.hidden = counts("MLP: hidden", hidden, empty=True)
        self.activation = maker("MLP: activation", activation)

    def __call__(self, latents: int, shape: tuple[int, ...]) -> nn.Sequential:
        layers: list[nn.Module] = []
        for features, width in pairwise((latents, *self.hidden)):
            layers += [nn.Linear(features, width), self.activation()]
        last = nn.Linear((latents, *self.hidden)[-1], prod(shape), bias=False)
        return nn.Sequential(*layers, last, nn.Unflatten(-1, shape))


class Linear(MLP):
    """Spec of a matrix; with Gaussian noise the model is probabilistic PCA."""

    def __init__(self) -> None:
        super().__init__(hidden=())
