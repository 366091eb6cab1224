"""The state of a fit between two steps, to go back to."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

from .graphs.planned_rates import SchedulePlace
from .minibatches import Batch
from .problem import Member

__all__ = ["Snapshot"]


class Snapshot(NamedTuple):
    """Generators, learning rate, position in the epoch and, if asked for, copies of parameters and optimiser state."""

    random_state: dict[str, Any]
    schedule: SchedulePlace
    batches: tuple[int, list[Tensor], list[Batch]]
    values: list[Tensor] | None

    @classmethod
    def of(cls, member: Member, *, values: bool = False) -> Snapshot:
        """The state of `member` now. A loop leaves parameters alone until its results are accepted: copy them if need be."""
        copies = [value.clone() for value in member.values()] if values else None
        return cls(member.random_state, SchedulePlace.of(member.problem), member.problem.batches.place, copies)

    def restore(self, member: Member) -> None:
        """Returns `member` to this state."""
        member.set_random_state(self.random_state)
        self.schedule.restore(member.problem)
        member.problem.batches.place = self.batches
        self.restore_values(member)

    def restore_values(self, member: Member) -> None:
        """Returns parameters and optimiser state alone."""
        if self.values is not None:
            member.write(self.values)
