"""Watches Pyro's steps for state that a fit keeps between them besides its parameters."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

from .errors import HiddenStateError, LoopError
from .graphs.hidden_state import Memory, memory
from .graphs.outside_world import Outside, watched_outside
from .problem import Member

__all__ = ["StateWatch"]


class StateWatch:
    """Compares what the programs of some fits can reach before and after steps by Pyro, without a call of its own.

    Args:
        members: the fits.

    Attributes:
        stepping: whether a step is being watched.
    """

    def __init__(self, members: Sequence[Member]) -> None:
        self.stepping = False
        self._members = members
        self._before: list[tuple[Memory, Memory]] | None = None
        self._outside: list[Outside] = []
        self._error: HiddenStateError | LoopError | None = None

    @contextmanager
    def step(self) -> Iterator[None]:
        """Watches the step inside the context. The first time, reads the state before and after it."""
        first = self._before is None
        if first:
            self._before = self._read()
        self.stepping = True
        try:
            with watched_outside() as outside:
                yield
        finally:
            self.stepping = False
        if outside.event is not None:
            self._outside = [*self._outside[:1], outside]
        if first:
            try:
                self._compare()
            except (HiddenStateError, LoopError) as error:
                self._error = error

    def check(self) -> None:
        """Reads the state again, to compare it with that before the first step that was watched.

        Raises:
            HiddenStateError: if the programs keep state between calls, or have an object that cannot be read.
            LoopError: if optimiser or schedule do.
        """
        if event := next((seen.event for seen in self._outside if seen.event is not None), None):
            raise HiddenStateError(f"it {event}, where it may keep state between calls")
        if self._error is not None:
            raise self._error
        self._compare()

    def _compare(self) -> None:
        if self._before is None:
            return
        for (programs, rules), (programs_before, rules_before) in zip(self._read(), self._before, strict=True):
            programs.require_unchanged(programs_before)
            try:
                rules.require_unchanged(rules_before)
            except HiddenStateError as error:
                raise LoopError(f"its optimiser or schedule cannot be captured: {error}") from error

    def _read(self) -> list[tuple[Memory, Memory]]:
        found = []
        for member in self._members:
            problem = member.problem
            programs = {
                "the model": problem.model,
                "the guide": problem.guide,
                "the objective": problem.objective,
                "the transform": problem.batches.transform,
            }
            learned = [*problem.parameters, *problem.rows.leaves]
            with ExitStack() as stack:
                stack.enter_context(member.entered())
                rules = _of_optimiser(problem.optimiser) | _of_schedule(problem.schedule)
                found.append((memory(learned=learned, **programs), memory(learned=learned, **rules)))
        return found


def _of_optimiser(optimiser: torch.optim.Optimizer) -> dict[str, Any]:
    """The class and the attributes of an optimiser that torch's own do not have: state and settings go through a loop."""
    known = {*vars(torch.optim.SGD([torch.zeros(1)], lr=1.0)), "step", "_opt_called", "_step_count"}
    own = {name: value for name, value in vars(optimiser).items() if name not in known}
    return {"the optimiser's class": type(optimiser), "the optimiser's attributes": own}


def _of_schedule(schedule: Any) -> dict[str, Any]:
    """The class and the functions of a schedule: its numbers are restored where a fit goes back."""
    if schedule is None:
        return {}
    functions = [value for name, value in vars(schedule).items() if name != "optimizer" and _has_functions(value)]
    return {"the schedule's class": type(schedule), "the schedule's functions": functions}


def _has_functions(value: Any) -> bool:
    return callable(value) or (isinstance(value, list | tuple) and any(map(callable, value)))
