"""The contract of a rule that ends a fit."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from math import nan
from typing import ClassVar, NamedTuple, Protocol

from torch import Tensor

__all__ = ["Estimate", "Rule", "Running", "Stop", "Watch"]


@dataclass(frozen=True)
class Stop:
    """Why a fit ended, and how far from the best λ it is thought to be."""

    rule: object
    """The rule that ended it; a solver that stops by itself is its own rule."""
    reason: str
    converged: bool
    """Whether the rule holds that the best λ is reached; False where it only ran out of steps or time."""
    distance: float = nan
    """Estimate of KL(q ‖ q*) to the family's best q*, in nats, per datum where every latent lies in the data plate; NaN if
    no rule has estimated it."""
    averaged: bool = False
    """Whether λ is an average of iterates, because its loss was lower than the last one's."""


class Estimate(NamedTuple):
    """What a rule knows at the end of a fit, whichever rule ended it. Fields as in `Stop`."""

    distance: float
    averaged: bool


class Running(Protocol):
    """A fit between two blocks of steps, as a rule sees it. λ is flat here: all that is learned, in float64, shape (p,)."""

    rate: float
    """The learning rate, which a rule may set."""

    @property
    def data_count(self) -> int:
        """N if every latent lies in one plate of N data, else 1. Distances and tolerances are nats divided by it."""

    @property
    def steps(self) -> int:
        """Number of steps taken."""

    @property
    def seconds(self) -> float:
        """Since the first step."""

    @property
    def losses(self) -> Tensor:
        """The loss of every step taken: an estimate of −ELBO, in nats; shape (steps,)."""

    def iterate(self) -> Tensor:
        """A copy of λ."""

    def move(self, point: Tensor) -> None:
        """Sets λ."""

    def scores(self) -> Tensor:
        """Draws whose mean square along a small change δ of λ is twice the KL, in nats, that δ moves q; shape (K, p)."""

    def losses_at(self, points: list[Tensor]) -> Tensor:
        """Losses with common noise at several λ, shape (len(points), K). Leaves λ and the random state as they were."""


class Rule(ABC):
    """Says when a fit is to end. An immutable object; what it remembers of one fit is in the `Watch` that it begins."""

    sets_rate: ClassVar[bool] = False
    """Whether it also sets the learning rate, so that a fit needs no schedule."""

    @abstractmethod
    def begin(self, run: Running) -> Watch:
        """Starts watching a fit, before its first step."""


class Watch(ABC):
    """A rule at work on one fit. It looks between blocks of steps only.

    Attributes:
        due: the step after which it wants to look next.
    """

    due: int

    @abstractmethod
    def look(self, run: Running) -> Stop | None:
        """Looks at the fit, sets `due` anew, and returns why the fit is to end, or None. May set rate and λ."""

    def close(self, run: Running) -> Estimate | None:
        """Called once at the end, whichever rule ended the fit; may set λ. None if the rule has estimated nothing."""
        del run
        return None
