"""The engine that finishes first, found while the fit is under way."""

from __future__ import annotations

import time
import warnings
from math import inf
from pathlib import Path
from subprocess import CalledProcessError
from typing import NamedTuple

from torch import Tensor

from .base import Engine, Problem
from .compiled import DRAWS_OTHERS, CompiledLoop, Ready
from .graphs.hidden_state import memory
from .inductor import cache
from .inductor.background import Background

__all__ = ["Auto"]

CAPTURE = 300
"""Steps by Pyro that take as long as capturing one, about."""
SMALL = 0.002
"""Seconds of a step that is mostly Pyro's own work, of which the captured step is free."""
COMPILATION = 10.0
"""Seconds that it takes to compile a small loop, about."""
WORTH = 3.0
"""A fit is worth capturing and compiling if the rest of it takes so many times as long."""
BLOCK = 32
"""Steps between two looks at the clock, as long as nothing is compiled."""
FIRST = 4
"""Steps, or blocks of them, until a time is believed: the first ones load code."""


class Auto(CompiledLoop):
    """Begins by Pyro, and changes to captured and compiled code where the fit will be over sooner.

    A loop whose like is on disk is captured at once. Otherwise the quickest step so far tells how long the rest would take:
    if several times as long as capturing and compiling, the step is captured, and a second process compiles it beside the
    fit; it finishes even if the fit is over before, for the next one. Until then, and in shorter fits of small models, the
    captured step runs without a compiler. How long a fit will be that stops by its own rule is not known, and taken to be
    as long again as it was. Compiled code that is slower than Pyro, as it can be where large products of matrices take the
    time, is left again. All engines take the same trajectory, so that nothing but time and rounding depends on when a change
    is made.

    A program that remembers something from one call to the next, such as a count of its calls or running moments, runs by
    Pyro throughout; so does, in silence, one that seeds torch's generator itself.

    Args:
        problem: what to run.
    """

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem)
        self._began = time.perf_counter()
        self._by_pyro_best = inf
        """The least seconds of a step by Pyro, and of a captured one; the latter is found anew when it is compiled."""
        self._captured_best = inf
        self._blocks = 0
        self._nickname = ""
        self._known = False
        self._wanted: Wanted | None = None
        self._building: Background | None = None

    def _block(self, most: int) -> Tensor:
        if self.instead is not None:
            return super()._block(most)
        begin, ready = time.perf_counter(), self._ready
        if ready is None and not self._worth_capturing():
            losses = self._by_pyro()
            if self.taken > 2:
                self._by_pyro_best = min(self._by_pyro_best, time.perf_counter() - begin)
            return losses
        losses = super()._block(most if self._wanted is None else min(most, BLOCK))
        if ready is not None and self.instead is None:
            self._captured_best = min(self._captured_best, (time.perf_counter() - begin) / len(losses))
            if self._wanted is not None:
                self._change(ready, self._wanted)
            else:
                self._blocks += 1
                if self._blocks == FIRST and self._captured_best > self._by_pyro_best:
                    self.instead = self.eager
        return losses

    def _leave_to(self, engine: Engine, why: str) -> None:
        if why.endswith(DRAWS_OTHERS):
            # As a SemiAmortized guide does, which seeds its climb: Pyro is right, and nothing is for the user to do.
            self.instead = engine
        else:
            super()._leave_to(engine, why)

    def _worth_capturing(self) -> bool:
        if self.taken < FIRST:
            return False
        if not self._nickname:
            self._nickname = cache.nickname(self.problem)
            self._known = cache.knows(self._nickname)
        step, rest = self._by_pyro_best, self._rest(self._by_pyro_best)
        compilation = COMPILATION + CAPTURE * step
        return self._known or rest > WORTH * compilation or (step < SMALL and rest > 2 * WORTH * CAPTURE * step)

    def _by_pyro(self) -> Tensor:
        """One step by Eager; the second shows whether the programs remember it."""
        problem = self.problem
        watched = (problem.model, problem.guide, problem.objective, problem.batches.transform) if self.taken == 1 else ()
        before = memory(*watched, learned=problem.parameters)
        losses = self._by(self.eager, [next(problem.batches)])
        if memory(*watched, learned=problem.parameters) != before:
            self.instead = self.eager
        return losses

    def _obtain(self, ready: Ready, example: list[Tensor]) -> Ready:
        entry = cache.entry(ready.loop, example, threads=ready.threads)
        found = cache.find(entry, self._nickname)
        if found is not None:
            return ready._replace(run=found)
        self._wanted = Wanted(entry, example, ready.threads)
        return ready

    def _change(self, ready: Ready, wanted: Wanted) -> None:
        """Has the loop compiled if that is worth it, and takes it into use when it is ready."""
        if self._building is None and self._rest(self._captured_best) > COMPILATION:
            try:
                self._building = Background(wanted.entry, ready.loop, wanted.example, threads=wanted.threads)
            except (OSError, CalledProcessError):
                # No second process can be had here: the captured step goes on.
                self._wanted = None
            else:
                # One thread is the compiler's: those that wait for each other lose much where they have to share.
                self._ready = ready._replace(threads=max(1, wanted.threads - 1))
        elif self._building is not None and self._building.finished:
            self._wanted, self._captured_best = None, inf
            found = cache.find(wanted.entry, self._nickname)
            self._ready = ready._replace(threads=wanted.threads, run=found or ready.run)
            self._due = self.taken
            if found is None:
                warnings.warn(f"the fit runs without compiled code, since {self._building.failure}", stacklevel=5)

    def _rest(self, step: float) -> float:
        """Seconds that the rest of the fit takes at so many a step."""
        if self.problem.steps is None:
            return time.perf_counter() - self._began
        return step * (self.problem.steps - self.taken)


class Wanted(NamedTuple):
    """A loop that is not on disk."""

    entry: Path
    example: list[Tensor]
    threads: int
