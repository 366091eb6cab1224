"""The state of a fit between two steps, to go back to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from .graphs.planned_rates import SchedulePlace
from .minibatches import BatchesPlace
from .problem import Member

__all__ = ["Place", "Snapshot"]


@dataclass(frozen=True)
class Place:
    """A fit's state but for its parameters and its optimiser's: generators, learning rate, position in the epoch."""

    random_state: dict[str, Any]
    schedule: SchedulePlace
    batches: BatchesPlace

    @classmethod
    def of(cls, member: Member) -> Place:
        """The place of `member` now."""
        return cls(member.random_state, SchedulePlace.of(member.problem), member.problem.batches.place)

    def restore(self, member: Member) -> None:
        """Returns `member` to this place."""
        member.set_random_state(self.random_state)
        self.schedule.restore(member.problem)
        member.problem.batches.place = self.batches


@dataclass(frozen=True)
class Snapshot:
    """All of a fit's state that its steps change."""

    place: Place
    values: list[Tensor]
    """Copies of the parameters and of the optimiser's state."""

    @classmethod
    def of(cls, member: Member) -> Snapshot:
        """The state of `member` now."""
        return cls(Place.of(member), [value.clone() for value in member.values()])
