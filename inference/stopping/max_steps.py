"""A limit on the number of steps."""

from __future__ import annotations

from dataclasses import dataclass

from ..programs.arguments import check_fields
from .base import Rule, Running, Stop, Watch

__all__ = ["MaxSteps", "taken"]


@dataclass(frozen=True)
class MaxSteps(Rule):
    """Ends a fit after a number of steps.

    Args:
        steps: at least 1.
    """

    steps: int

    def __post_init__(self) -> None:
        check_fields(self)
        if self.steps < 1:
            raise ValueError(f"MaxSteps: steps must be at least 1, but is {self.steps}.")

    def begin(self, run: Running) -> Watch:
        return _Watch(self)


class _Watch(Watch):
    def __init__(self, rule: MaxSteps) -> None:
        self.rule = rule
        self.due = rule.steps

    def look(self, run: Running) -> Stop | None:
        return taken(self.rule)


def taken(rule: MaxSteps) -> Stop:
    """The end of a fit that has taken all its steps."""
    return Stop(rule, f"took the {rule.steps} steps it was given", converged=False)
