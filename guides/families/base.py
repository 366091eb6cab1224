"""The contract of a family."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from math import expm1, log
from typing import ClassVar, Self

import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor, nn

from ..arguments import count, number

__all__ = ["Family", "PlainFamily"]


class Family(nn.Module, ABC):
    """A map from an unconstrained λ in R^size to a distribution q over R^dim: ``family(λ)``.

    A family is made from its options, ``LowRank(rank=2)``. A guide binds it to a space by `over` when it knows the dimension
    of its model's latents. λ may have any batch shape; q has the same.

    Args:
        scale: standard deviation of q at the start of a fit, in unconstrained space.

    Raises:
        ValueError: if scale is not positive.
    """

    discrete: ClassVar[bool] = False
    """Whether q is over {0, 1}^dim instead of R^dim."""

    dim: int

    def __init__(self, *, scale: float = 0.1) -> None:
        super().__init__()
        self.scale = number(f"{type(self).__name__}: scale", scale, above=0)

    @classmethod
    def demo(cls, dim: int) -> Self:
        """An instance that can be bound to R^dim, for the contract tests."""
        del dim
        return cls()

    def over(self, dim: int) -> Self:
        """A copy of this family over R^dim."""
        bound = copy.deepcopy(self)
        bound.dim = count(f"{type(self).__name__}: dim", dim)
        return bound

    @property
    @abstractmethod
    def size(self) -> int:
        """The number of unconstrained numbers in λ."""

    @abstractmethod
    def start(self) -> Tensor:
        """The initial λ of a fit, shape (size,)."""

    @abstractmethod
    def forward(self, lam: Tensor) -> TorchDistribution:
        """q_λ, with batch shape lam.shape[:-1] and event shape (dim,)."""

    def blocks(self) -> list[list[int]] | None:
        """The blocks of coordinates that a Gaussian family can correlate; None if blocks do not describe the family."""
        return None


class PlainFamily(Family):
    """A family whose λ is one number for each coordinate, zero at the start of a fit."""

    def __init__(self) -> None:
        super().__init__()

    @property
    def size(self) -> int:
        return self.dim

    def start(self) -> Tensor:
        return torch.zeros(self.dim)


def inverse_softplus(value: float) -> float:
    """The u with softplus(u) = value."""
    return log(expm1(value)) if value < 20.0 else value
