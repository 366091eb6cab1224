"""The contract of a family."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from math import expm1, log
from typing import ClassVar, Self

from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor, nn

__all__ = ["Family"]


class Family(nn.Module, ABC):
    """A map from an unconstrained λ in R^size to a distribution over R^dim. Conditioning is calling: ``family(λ)``.

    A family is made with its options alone, ``LowRank(rank=2)``, and bound to a space by `over`, which a guide does when
    it has learned the dimension of its model's latents. λ may have any batch shape; q has the same.

    Args:
        scale: standard deviation that q starts with, in unconstrained space.
    """

    discrete: ClassVar[bool] = False
    """Whether q is over {0, 1}^dim instead."""

    dim: int

    def __init__(self, *, scale: float = 0.1) -> None:
        super().__init__()
        if not scale > 0:
            raise ValueError(f"{type(self).__name__}: scale must be positive, but is {scale}.")
        self.scale = scale

    @classmethod
    def demo(cls, dim: int) -> Self:
        """An instance that can be bound to R^dim: what the contract tests run on."""
        del dim
        return cls()

    def over(self, dim: int) -> Self:
        """This family over R^dim; `self` is left as it is."""
        bound = copy.deepcopy(self)
        bound.dim = dim
        return bound

    @property
    @abstractmethod
    def size(self) -> int:
        """How many unconstrained numbers one λ has."""

    @abstractmethod
    def start(self) -> Tensor:
        """The λ that a fit starts from, shape (size,)."""

    @abstractmethod
    def forward(self, lam: Tensor) -> TorchDistribution:
        """q_λ, with batch shape lam.shape[:-1] and event shape (dim,)."""

    def blocks(self) -> list[list[int]] | None:
        """The coordinates that a Gaussian family can correlate, as blocks; None where that does not describe it."""
        return None


def inverse_softplus(value: float) -> float:
    """The u with softplus(u) = value."""
    return log(expm1(value)) if value < 20.0 else value
