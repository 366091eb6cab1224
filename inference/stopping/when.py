"""A function of the user that ends a fit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ..programs.arguments import check_fields
from .base import Rule, Running, Stop, Watch

__all__ = ["When"]


@dataclass(frozen=True)
class When(Rule):
    """Calls a function at regular intervals, and ends the fit when the function returns a reason.

    Args:
        function: takes the fit as a `Running`, with its steps, seconds, losses and λ. Returns the reason to stop, or None to
            continue. If it draws random numbers, it must restore the random state, or it changes the noise of the fit.
        every: steps between two calls.
    """

    function: Callable[[Running], str | None]
    every: int = 100

    def __post_init__(self) -> None:
        check_fields(self)
        if self.every < 1:
            raise ValueError(f"When: every must be at least 1, but is {self.every}.")

    def begin(self, run: Running) -> Watch:
        return _Watch(self)


class _Watch(Watch):
    def __init__(self, rule: When) -> None:
        self.rule = rule
        self.due = rule.every

    def look(self, run: Running) -> Stop | None:
        self.due += self.rule.every
        reason = self.rule.function(run)
        return None if reason is None else Stop(self.rule, reason, converged=False)
