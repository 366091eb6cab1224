"""The contract of a solver: an optimiser that does more than step along one gradient."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from math import inf, nan
from typing import Any, ClassVar, NamedTuple

from torch import Tensor

from guides import Guide

from ..programs.bound import unwrap

__all__ = ["Solution", "Solver", "SolverTask", "check_only_q", "guide_name"]


class SolverTask(NamedTuple):
    """The input of a solver: a pair, all its data, and the leaves to optimise, which the solver sets in place."""

    model: Callable[..., Any]
    guide: Callable[..., Any]
    args: tuple[Any, ...]
    parameters: list[Tensor]
    deadline: float = inf
    """Reading of `time.perf_counter` after which the solver takes no further iteration, if it heeds one."""


class Solution(NamedTuple):
    """The outcome of a solver."""

    losses: list[float]
    """An estimate of −ELBO, in nats, at each iteration. If the last one is not finite, the fit has diverged."""
    reason: str
    """Why the solver ended, as a predicate of its name."""
    converged: bool
    """Whether it met its own tolerance at an optimum of the ELBO."""
    distance: float = nan
    """Estimated distance to the optimum, as in `Stop`."""

    @classmethod
    def met(cls, losses: list[float], distance: float = nan) -> Solution:
        """The solver met its tolerance."""
        return cls(losses, f"met its own tolerance after {len(losses)} iterations", converged=True, distance=distance)

    @classmethod
    def ran_out(cls, losses: list[float], distance: float = nan) -> Solution:
        """The solver used up its iterations."""
        return cls(losses, f"took the {len(losses)} iterations it was given", converged=False, distance=distance)

    @classmethod
    def timed_out(cls, losses: list[float], distance: float = nan) -> Solution:
        """The solver reached its deadline."""
        return cls(losses, f"used up its time after {len(losses)} iterations", converged=False, distance=distance)

    @classmethod
    def diverged(cls, losses: list[float]) -> Solution:
        """The loss was not finite."""
        return cls([*losses, nan], f"diverged after {len(losses)} iterations", converged=False)


class Solver(ABC):
    """Finds the best λ from all the data, without a learning rate, and stops by its own rule.

    Pass one as ``fit(optimiser=...)``; `lr`, `schedule` and `objective` then have no effect, and `steps` is the maximal
    number of iterations.
    """

    exact: ClassVar[bool] = True
    """Whether it finds the posterior itself, up to rounding, if that is a Gaussian of the guide's family."""

    @abstractmethod
    def check(self, task: SolverTask) -> None:
        """Raises a ValueError if the solver does not apply to this pair; the message names one that does."""

    @abstractmethod
    def solve(self, task: SolverTask, *, steps: int) -> Solution:
        """Sets the parameters, in at most `steps` iterations."""


def check_only_q(solver: Solver, task: SolverTask) -> None:
    """Raises a ValueError unless the λ of q is the only parameter to learn."""
    if len(task.parameters) != 1:
        raise ValueError(
            f"{type(solver).__name__} optimises a single q, but this pair has other parameters to learn too (of the model, or "
            "of shared latents): use FixedDraws or torch's Adam."
        )


def guide_name(guide: Callable[..., Any]) -> str:
    """The class of a guide, with that of its family: ``Global(MeanField)``."""
    guide = unwrap(guide)
    return f"{type(guide).__name__}({type(guide.family).__name__})" if isinstance(guide, Guide) else type(guide).__name__
