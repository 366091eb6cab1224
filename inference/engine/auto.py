"""The engine that finishes first, found while the fit is under way."""

from __future__ import annotations

import time
from subprocess import CalledProcessError

from torch import Tensor

from . import cache
from .background import Background
from .base import Engine, Problem
from .compiled import DRAWS_OTHERS, CompiledLoop, Ready
from .memory import memory

__all__ = ["Auto"]

PATIENCE = 0.1
"""Seconds by Pyro before the step is captured: many fits are over by then."""
COMPILATION = 10.0
"""Seconds that it takes to compile a loop, about."""
BLOCK = 32
"""Steps between two looks at the clock, as long as nothing is compiled."""


class Auto(CompiledLoop):
    """Begins by Pyro, goes on with the captured step, and changes to compiled code as soon as there is some.

    A loop that is on disk is used at once. Otherwise a second process compiles it beside the fit, if by the time of a step
    so far the rest will take more than twice as long as compiling does; how long a fit will be that stops by its own rule
    is not known, and taken to be as long again as it was. The other process finishes even if the fit is over before, for the
    next one. All engines take the same trajectory, so that nothing but time depends on when the change is made.

    A program that remembers something from one call to the next, such as a count of its calls or running moments, runs by
    Pyro throughout; so does, in silence, one that seeds torch's generator itself.

    Args:
        problem: what to run.
    """

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem)
        self._began = time.perf_counter()
        self._spent = 0.0
        self._interpreted = 0
        self._example: list[Tensor] | None = None
        self._building: Background | None = None

    def _block(self, most: int) -> Tensor:
        if self.instead is not None:
            return super()._block(most)
        if self._ready is None and (self.taken < 2 or time.perf_counter() - self._began < PATIENCE):
            return self._by_pyro()
        begin, ready = time.perf_counter(), self._ready
        losses = super()._block(most if self._example is None else min(most, BLOCK))
        if ready is not None and self._example is not None and self.instead is None:
            self._spent += time.perf_counter() - begin
            self._interpreted += len(losses)
            self._change(ready)
        return losses

    def _leave_to(self, engine: Engine, why: str) -> None:
        if why.endswith(DRAWS_OTHERS):
            # As a SemiAmortized guide does, which seeds its climb: Pyro is right, and nothing is for the user to do.
            self.instead = engine
        else:
            super()._leave_to(engine, why)

    def _by_pyro(self) -> Tensor:
        """One step by Eager; the second shows whether the programs remember it."""
        problem = self.problem
        watched = (problem.model, problem.guide, problem.objective, problem.batches.transform) if self.taken == 1 else ()
        before = memory(*watched)
        losses = self._by(self.eager, [next(problem.batches)])
        if memory(*watched) != before:
            self.instead = self.eager
        return losses

    def _obtain(self, ready: Ready, example: list[Tensor]) -> Ready:
        found = cache.find(cache.entry(ready.loop, example, threads=ready.threads))
        if found is not None:
            return ready._replace(run=found)
        self._example = example
        return ready

    def _change(self, ready: Ready) -> None:
        """Has the loop compiled if that is worth it, and takes it into use when it is ready."""
        assert self._example is not None
        entry = cache.entry(ready.loop, self._example, threads=ready.threads)
        if self._building is None and self._rest() > 2 * COMPILATION:
            try:
                self._building = Background(entry, ready.loop, self._example, threads=ready.threads)
            except (OSError, CalledProcessError):
                # No second process can be had here: the captured step goes on.
                self._example = None
        elif self._building is not None and self._building.finished:
            self._example = None
            found = cache.find(entry)
            if found is not None:
                self._ready = ready._replace(run=found)
                self._due = self.taken

    def _rest(self) -> float:
        """Seconds that the rest of the fit would take by the captured step."""
        if self.problem.steps is None:
            return self._spent
        return self._spent / max(1, self._interpreted) * (self.problem.steps - self.taken)
