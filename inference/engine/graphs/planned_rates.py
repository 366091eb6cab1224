"""The learning rates of many steps, taken from a schedule at once."""

from __future__ import annotations

from typing import Any

from ..base import Problem
from .optimiser_step import PlainOptimiserError, settings_of

__all__ = ["place_of", "put_back", "rates"]


def rates(problem: Problem, steps: int, settings: dict[str, Any]) -> list[float]:
    """The learning rates of the next steps; the schedule stands behind the last of them afterwards.

    Args:
        problem: whose optimiser and schedule they are.
        steps: how many.
        settings: the optimiser's, as they have to stay.

    Raises:
        PlainOptimiserError: if a setting other than the rate has changed, or would; the schedule is where it was.
    """
    optimiser, schedule, place = problem.optimiser, problem.schedule, place_of(problem)
    if settings_of(optimiser) != settings:
        raise PlainOptimiserError("the optimiser's settings have changed")
    found: list[float] = []
    for _ in range(steps):
        found.append(float(optimiser.param_groups[0]["lr"]))
        if schedule is not None:
            schedule.step()
            if settings_of(optimiser) != settings:
                put_back(problem, place)
                raise PlainOptimiserError(f"{type(schedule).__name__} changes more than the learning rate")
    return found


def place_of(problem: Problem) -> tuple[dict[str, Any], dict[str, Any]]:
    """The optimiser's settings and the schedule's state, for `put_back`."""
    group = {key: value for key, value in problem.optimiser.param_groups[0].items() if key != "params"}
    return group, {} if problem.schedule is None else problem.schedule.state_dict()


def put_back(problem: Problem, place: tuple[dict[str, Any], dict[str, Any]]) -> None:
    """Returns optimiser and schedule to a place; it may be that of a twin."""
    problem.optimiser.param_groups[0].update(place[0])
    if problem.schedule is not None:
        problem.schedule.load_state_dict(place[1])
