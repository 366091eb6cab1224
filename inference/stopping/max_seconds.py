"""A limit on wall time."""

from __future__ import annotations

from dataclasses import dataclass

from ..programs.arguments import check_fields
from .base import Rule, Running, Stop, Watch

__all__ = ["MaxSeconds"]


@dataclass(frozen=True)
class MaxSeconds(Rule):
    """Ends a fit once its time is used up. It looks about every twentieth of that time, and ends the fit at a look.

    Args:
        seconds: wall time, counted from before the first step.
    """

    seconds: float

    def __post_init__(self) -> None:
        check_fields(self)
        if not self.seconds > 0:
            raise ValueError(f"MaxSeconds: seconds must be positive, but is {self.seconds}.")

    def begin(self, run: Running) -> Watch:
        return _Watch(self)


class _Watch(Watch):
    def __init__(self, rule: MaxSeconds) -> None:
        self.rule = rule
        self.due = 1

    def look(self, run: Running) -> Stop | None:
        spent = run.seconds
        if spent >= self.rule.seconds:
            return Stop(self.rule, f"took the {self.rule.seconds:g} seconds it was given", converged=False)
        wait = min(self.rule.seconds / 20, self.rule.seconds - spent)
        # The first steps include capture and compilation, so they do not tell the time of a step: at most double the steps.
        self.due = run.steps + max(1, min(run.steps, int(run.steps * wait / max(spent, 1e-9))))
        return None
