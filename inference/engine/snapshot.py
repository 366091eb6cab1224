"""The state of a fit between two steps, to go back to."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from .graphs.planned_rates import SchedulePlace
from .local_rows import RowsPlace
from .minibatches import Batch
from .problem import Member

__all__ = ["Snapshot"]


class Values(NamedTuple):
    """Copies of parameters, optimiser state and local tables."""

    parameters: list[Tensor]
    states: list[dict[str, Any]]
    """The optimiser's state of each parameter."""
    rows: RowsPlace


class Snapshot(NamedTuple):
    """Generators, learning rate, position in the epoch and, if asked for, copies of parameters and optimiser state."""

    random_state: dict[str, Any]
    schedule: SchedulePlace
    batches: tuple[int, list[Tensor], list[Batch]]
    values: Values | None

    @classmethod
    def of(cls, member: Member, *, values: bool = False) -> Snapshot:
        """The state of `member` now. A loop leaves parameters alone until its results are accepted: copy them if need be."""
        problem = member.problem
        copies = None
        if values:
            parameters = [parameter.detach().clone() for parameter in problem.parameters]
            states = [_copied(problem.optimiser.state.get(parameter, {})) for parameter in problem.parameters]
            copies = Values(parameters, states, problem.rows.place)
        return cls(member.random_state, SchedulePlace.of(problem), problem.batches.place, copies)

    def restore(self, member: Member) -> None:
        """Returns `member` to this state."""
        member.set_random_state(self.random_state)
        self.schedule.restore(member.problem)
        member.problem.batches.place = self.batches
        self.restore_values(member)

    def restore_values(self, member: Member) -> None:
        """Returns parameters and optimiser state alone."""
        if self.values is None:
            return
        problem = member.problem
        problem.rows.place = self.values.rows
        with torch.no_grad():
            kept = zip(problem.parameters, self.values.parameters, self.values.states, strict=False)
            for parameter, value, state in kept:
                if parameter.shape == value.shape:
                    parameter.copy_(value)
                else:
                    parameter.data = value.clone()
                problem.optimiser.state.pop(parameter, None)
                if state:
                    problem.optimiser.state[parameter] = _copied(state)


def _copied(state: dict[str, Any]) -> dict[str, Any]:
    return {key: value.clone() if isinstance(value, Tensor) else value for key, value in state.items()}
