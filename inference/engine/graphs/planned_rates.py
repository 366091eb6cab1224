"""The learning rates of many steps, read from a schedule at once."""

from __future__ import annotations

from typing import Any, NamedTuple

from ..errors import LoopError
from ..problem import Problem
from .optimiser_step import settings_of

__all__ = ["SchedulePlace", "rates"]


class SchedulePlace(NamedTuple):
    """The optimiser's settings and the schedule's state at some step."""

    settings: dict[str, Any]
    schedule: dict[str, Any]

    @classmethod
    def of(cls, problem: Problem) -> SchedulePlace:
        """The place of `problem` now."""
        settings = {key: value for key, value in problem.optimiser.param_groups[0].items() if key != "params"}
        return cls(settings, {} if problem.schedule is None else problem.schedule.state_dict())

    def restore(self, problem: Problem) -> None:
        """Brings optimiser and schedule of `problem`, or of a fit like it, to this place."""
        problem.optimiser.param_groups[0].update(self.settings)
        if problem.schedule is not None:
            problem.schedule.load_state_dict(self.schedule)


def rates(problem: Problem, steps: int, settings: dict[str, Any]) -> list[float]:
    """Returns the learning rates of the next `steps` steps and moves the schedule behind the last of them.

    Args:
        problem: the fit whose optimiser and schedule are read.
        steps: how many.
        settings: the optimiser's other settings when the step was captured, which must not change.

    Raises:
        LoopError: if a setting other than the rate has changed, or would.
    """
    optimiser, schedule = problem.optimiser, problem.schedule
    if settings_of(optimiser) != settings:
        raise LoopError("the optimiser's settings have changed")
    found: list[float] = []
    for _ in range(steps):
        found.append(float(optimiser.param_groups[0]["lr"]))
        if schedule is not None:
            schedule.step()
            if settings_of(optimiser) != settings:
                raise LoopError(f"{type(schedule).__name__} changes more than the learning rate")
    return found
