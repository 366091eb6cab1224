"""The contract of a rule that ends a fit."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from math import nan
from typing import ClassVar, NamedTuple, Protocol

from torch import Tensor

__all__ = ["Closing", "Rule", "Running", "Stop", "Watch"]


@dataclass(frozen=True)
class Stop:
    """Why a fit ended, and how far it is estimated to be from the best λ."""

    rule: object
    """The rule that ended it. A solver, which stops by itself, is its own rule."""
    reason: str
    converged: bool
    """Whether the best λ has been reached, according to the rule; False if the fit ran out of steps or time."""
    distance: float = nan
    """Estimate of KL(q ‖ q*) to the family's best q*, in nats; per datum if every latent lies in the data plate. NaN if it has
    not been estimated."""
    averaged: bool = False
    """Whether λ is an average of iterates, whose loss was lower than that of the last iterate."""


class Closing(NamedTuple):
    """What a rule reports at the end of a fit, whichever rule ended it. Fields as in `Stop`."""

    distance: float
    averaged: bool


class Running(Protocol):
    """A fit between two blocks of steps, as a rule sees it. λ is flat here: everything learned, in float64, shape (p,)."""

    rate: float
    """The learning rate. A rule may set it."""

    @property
    def data_count(self) -> int:
        """N if every latent lies in one plate of N data, else 1. Distances and tolerances are nats divided by it."""

    @property
    def steps(self) -> int:
        """Number of steps taken."""

    @property
    def seconds(self) -> float:
        """Wall time since before the first step."""

    @property
    def losses(self) -> Tensor:
        """The loss of every step taken: an estimate of −ELBO, in nats; shape (steps,)."""

    def iterate(self) -> Tensor:
        """A copy of λ."""

    def move(self, point: Tensor) -> None:
        """Sets λ."""

    def scores(self) -> Tensor:
        """Vectors s_k, shape (K, p): for a small change δ of λ, the mean of (s_k · δ)² is twice the KL, in nats, by which δ
        moves q."""

    def losses_at(self, points: list[Tensor]) -> Tensor:
        """K losses at each of several λ, with common noise; shape (len(points), K). Restores λ and the random state."""


class Rule(ABC):
    """Decides when a fit ends. Immutable: the state of a rule in one fit is in the `Watch` that `begin` returns."""

    sets_rate: ClassVar[bool] = False
    """Whether the rule also sets the learning rate, so that a fit needs no schedule."""

    @abstractmethod
    def begin(self, run: Running) -> Watch:
        """Begins to watch a fit, before its first step."""


class Watch(ABC):
    """A rule at work on one fit. It looks at the fit only between blocks of steps.

    Attributes:
        due: the number of steps at which to look next.
    """

    due: int

    @abstractmethod
    def look(self, run: Running) -> Stop | None:
        """Looks at the fit and updates `due`. Returns why the fit ends, or None to continue. May set the rate and λ."""

    def close(self, run: Running) -> Closing | None:
        """Called once at the end, whichever rule ended the fit. May set λ. Returns None if the rule has estimated nothing."""
        del run
        return None
