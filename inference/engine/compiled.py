"""Many steps at once, inside compiled code."""

from __future__ import annotations

import warnings
from typing import ClassVar

from torch import Tensor

from .base import Engine
from .errors import BuildError
from .inductor import cache
from .joint_loop import JointLoop
from .problem import Problem
from .simultaneous import SimultaneousFits
from .strategy import Strategy

__all__ = ["Compiled", "CompiledLoop"]


class Compiled(Strategy):
    """Captures the second step and compiles the loop at once, or finds it on disk."""

    def prepared(self, loop: JointLoop, example: list[Tensor]) -> JointLoop:
        entry = cache.entry(loop.body, example, threads=loop.threads)
        nickname = cache.nickname(self.members[0].problem, fits=len(self.members))
        found = cache.find(entry, nickname)
        why: object = f"the compiled loop cannot be loaded from {entry}"
        if found is None:
            try:
                cache.make(entry, loop.body, example, threads=loop.threads)
                found = cache.find(entry, nickname)
            except BuildError as error:
                why = error
        if found is None:
            warnings.warn(f"the captured step runs without compiled code, since {why}", stacklevel=8)
        return loop._replace(run=found or loop.run)


class CompiledLoop(Engine):
    """Runs blocks of steps, optimiser included, in one loop of machine code: a small step takes microseconds.

    The step is captured like `Graph`'s, together with minibatch, transform and the optimiser's update, and compiled by
    torch's Inductor. A later fit of the same program, in any process, finds the loop on disk (`cache.folder`). Random
    operations stay in the loop and draw from the global generator in the programs' order: the trajectory is Eager's, to
    rounding. `SimultaneousFits` says when the loop is compared with Pyro.

    A step that cannot be captured, or differs from Pyro's, runs by `Eager`; one that cannot be repeated in a loop by `Graph`;
    a loop that cannot be compiled runs operation by operation. Each gives one warning that says why. Pyro's own objectives
    run by `Eager`, and Local guides on minibatches by `Graph`, without a warning.

    Args:
        problem: the fit, on a CPU.

    Attributes:
        fits: the loop with this one fit.
    """

    strategy: ClassVar[type[Strategy]] = Compiled

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem)
        self.fits = SimultaneousFits([(None, problem)], type(self))

    def advance(self, steps: int, *, confirm: bool = False) -> Tensor:
        self.fits.taken = self.taken
        losses = self.fits.advance(steps, confirm=confirm)[:, 0]
        self.taken = self.fits.taken
        return losses
