"""A number of seconds."""

from __future__ import annotations

from dataclasses import dataclass

from .base import Rule, Running, Stop, Watch

__all__ = ["MaxSeconds"]


@dataclass(frozen=True)
class MaxSeconds(Rule):
    """Ends a fit at the first look after some time has passed; it looks about every twentieth of that time.

    Args:
        seconds: of wall time since the first step.
    """

    seconds: float

    def __post_init__(self) -> None:
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
        # The first step also compiles or captures, so no more than twice the steps so far are dared.
        self.due = run.steps + max(1, min(run.steps, int(run.steps * wait / max(spent, 1e-9))))
        return None
