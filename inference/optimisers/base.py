"""The contract of a solver: an optimiser that is more than a torch optimiser's step along one gradient."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from math import nan
from typing import Any, ClassVar, NamedTuple

from torch import Tensor

__all__ = ["Solution", "Solver", "Target"]


class Target(NamedTuple):
    """What a fit hands to a solver: the pair, all its data, and the leaves to optimise, which the solver sets in place."""

    model: Callable[..., Any]
    guide: Callable[..., Any]
    args: tuple[Any, ...]
    parameters: list[Tensor]


class Solution(NamedTuple):
    """How a solver ended."""

    losses: list[float]
    """An estimate of −ELBO, in nats, at each iteration; a last one that is not finite says that the fit diverged."""
    reason: str
    """Why it ended, to follow the solver's name."""
    converged: bool
    """Whether that was its own tolerance, met at an optimum of the ELBO."""
    distance: float = nan
    """As in `Stop`."""

    @classmethod
    def met(cls, losses: list[float], distance: float = nan) -> Solution:
        """The tolerance was met."""
        return cls(losses, f"met its own tolerance after {len(losses)} iterations", converged=True, distance=distance)

    @classmethod
    def ran_out(cls, losses: list[float]) -> Solution:
        """There were no more iterations."""
        return cls(losses, f"took the {len(losses)} iterations it was given", converged=False)

    @classmethod
    def diverged(cls, losses: list[float]) -> Solution:
        """The loss stopped being finite."""
        return cls([*losses, nan], f"diverged after {len(losses)} iterations", converged=False)


class Solver(ABC):
    """Finds the best λ by itself, from all the data: it has no learning rate, and stops by its own rule.

    Pass one as ``fit(optimiser=...)``; `lr`, `schedule` and `objective` then say nothing, and `steps` is the most
    iterations that it may take.
    """

    exact: ClassVar[bool] = True
    """Whether it finds the posterior itself, to rounding, where that is a Gaussian of the guide's family."""

    @abstractmethod
    def check(self, target: Target) -> None:
        """Raises a ValueError, which names what would work, if this pair cannot be solved so."""

    @abstractmethod
    def solve(self, target: Target, *, steps: int) -> Solution:
        """Sets the parameters, in at most `steps` iterations."""
