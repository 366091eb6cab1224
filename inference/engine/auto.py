"""The engine that finishes first, found while the fit is under way."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Sequence
from math import inf
from pathlib import Path
from subprocess import CalledProcessError

from torch import Tensor

from .compiled import CompiledLoop
from .errors import MappingError
from .graphs.threads import MIN_SHARED_WORK
from .inductor import cache
from .inductor.background import Background
from .joint_loop import JointLoop
from .problem import Member
from .strategy import Strategy

__all__ = ["Auto"]

CAPTURE = 300
"""Pyro's steps that take as long as capturing one, about."""
COMPILATION = 10.0
"""Seconds to compile a small loop, about."""
MAX_SMALL_STEP = 0.002
"""Seconds of a step that consists mostly of Pyro's own work, which capturing saves."""
MIN_GAIN = 3.0
"""The rest of a fit must take this many times as long as capturing and compiling."""
MAX_BLOCK = 32
"""Steps between two looks at the compiler in the background."""
MIN_TIMED = 4
"""Steps, or blocks of steps, before a time is used: the first ones load code."""


class Automatic(Strategy):
    """Captures and compiles if the fit is over sooner by it."""

    # Fits that cannot share a loop are run by Auto one by one: no fit runs by Pyro for it.
    silent = (MappingError,)
    # The first step makes what programs keep from then on.
    first_watched = 1
    max_mapped_work = MIN_SHARED_WORK

    def __init__(self, members: Sequence[Member]) -> None:
        super().__init__(members)
        self._began = time.perf_counter()
        self._pyro_best = inf
        """The least seconds of a step of all fits by Pyro."""
        self._captured_best = inf
        """The same in the loop, first captured, then compiled."""
        self._blocks = 0
        self._nickname = ""
        self._known = False
        self._wanted: tuple[Path, list[Tensor], int] | None = None
        """Place on disk, example of the inputs and threads of a loop to compile."""
        self._building: Background | None = None

    def by_pyro(self, taken: int, step: Callable[[], None]) -> None:
        """Takes a step and times it."""
        begin = time.perf_counter()
        step()
        if taken >= 2:
            self._pyro_best = min(self._pyro_best, time.perf_counter() - begin)

    def captures(self, taken: int) -> bool:
        if taken < MIN_TIMED:
            return False
        if not self._nickname:
            self._nickname = cache.nickname(self.members[0].problem, fits=len(self.members))
            self._known = cache.knows(self._nickname)
        step, rest = self._pyro_best / len(self.members), self._rest(taken, self._pyro_best)
        compilation = COMPILATION + CAPTURE * step
        small = step < MAX_SMALL_STEP and rest > 2 * MIN_GAIN * CAPTURE * step
        return self._known or rest > MIN_GAIN * compilation or small

    def prepared(self, loop: JointLoop, example: list[Tensor]) -> JointLoop:
        entry = cache.entry(loop.body, example, threads=loop.threads)
        found = cache.find(entry, self._nickname)
        if found is not None:
            return loop._replace(run=found)
        self._wanted, self.max_block = (entry, example, loop.threads), MAX_BLOCK
        return loop

    def changed(self, loop: JointLoop, taken: int, seconds: float) -> JointLoop | None:
        """Takes compiled code into use when it is ready, and goes back to Pyro if the loop is slower."""
        self._captured_best = min(self._captured_best, seconds)
        if self._wanted is not None:
            return self._compiled(loop, *self._wanted, taken)
        self._blocks += 1
        slower = self._blocks == MIN_TIMED and self._captured_best > self._pyro_best
        return None if slower else loop

    def _compiled(self, loop: JointLoop, entry: Path, example: list[Tensor], threads: int, taken: int) -> JointLoop:
        """Has the loop compiled in the background if that pays; returns it compiled once it is."""
        if self._building is None and self._rest(taken, self._captured_best) > COMPILATION:
            try:
                self._building = Background(entry, loop.body, example, threads=threads)
            except (OSError, CalledProcessError):
                # No second process can be started here: the captured step goes on.
                self._wanted, self.max_block = None, inf
                return loop
            # The compiler takes one thread. Threads that wait for each other are slow where they share a core.
            return loop._replace(threads=max(1, threads - 1))
        if self._building is None or not self._building.finished:
            return loop
        self._wanted, self.max_block, self._captured_best = None, inf, inf
        found = cache.find(entry, self._nickname)
        if found is None:
            why = self._building.failure
            warnings.warn(f"the captured step runs without compiled code, since {why}", stacklevel=8)
        return loop._replace(threads=threads, run=found or loop.run)

    def _rest(self, taken: int, step: float) -> float:
        """Seconds that the rest of the fit takes at so many a step; as long again as so far if its length is unknown."""
        steps = self.members[0].problem.steps
        return time.perf_counter() - self._began if steps is None else step * (steps - taken)


class Auto(CompiledLoop):
    """Begins by Pyro, and changes to captured and compiled code where the fit is over sooner by it.

    If a similar loop is on disk, the step is captured at once. Otherwise the quickest step so far predicts the time for the
    rest of the fit. If that is several times the time to capture and compile, the step is captured, and a second process
    compiles it while the fit goes on; it finishes even if the fit ends before, for the next fit. Meanwhile, and in shorter
    fits of small models, the captured step runs without a compiler. A fit of unknown length is assumed to last as long
    again as it has. Compiled code that is slower than Pyro, as may happen where large products of matrices take the time, is
    given up. All engines take the same trajectory, so the moment of a change affects only time and rounding.

    A program that keeps state between calls, such as a count of its calls or running moments, runs by Pyro throughout; so
    does a program that seeds torch's generator. A warning says so if the step would have been captured.

    Args:
        problem: the fit.
    """

    strategy = Automatic
