"""Many steps of n ≥ 1 fits of one program in one loop, compared with Pyro."""

from __future__ import annotations

import time
import warnings
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor

from ..programs.isolation import Scope
from .base import Engine
from .comparison import PyroSteps
from .eager import Eager
from .errors import CaptureError, DifferenceError, LoopError, MappingError
from .graph import Graph
from .graphs.optimiser_step import settings_of
from .graphs.planned_rates import SchedulePlace, rates
from .joint_loop import JointLoop, capture_loop
from .problem import Member, Problem
from .snapshot import Snapshot
from .strategy import Strategy

__all__ = ["SimultaneousFits"]

COMPARISON_BASE = 4
"""The loop is compared with Pyro before it is used, and at the powers of this step."""
MAX_COMPARED = 3
"""Steps of one comparison. More than one, to cover what a step hands on to the next."""


class SimultaneousFits:
    """Takes the steps of n ≥ 1 fits of the same programs in one loop.

    The first step is Pyro's; it gives the optimisers their state. Once the strategy says so, the step is captured and runs in
    a loop, block by block. The loop repeats a few of Pyro's steps before it is used, and at steps 4, 16, 64, …; at these,
    Pyro's results are kept. A block with a number that is not finite is taken back and taken again by `Graph`, which names
    the step. Where the loop cannot be used, the fits give way to slower engines, with one warning that says why.

    The step of several fits is the captured step of one, mapped over all. Each fit draws minibatches and noise from its own
    generator, in its own order, and so takes the trajectory of `Eager`, to rounding. Fits whose step cannot be mapped, or that
    differ from Pyro in the common loop, run one after another.

    Args:
        fits: each fit's scope, None for the global state, and its problem: the same programs, shapes, data, optimiser,
            schedule and number of steps.
        kind: the engine of these fits: `Graph` runs the loop operation by operation, `CompiledLoop` compiles it, `Auto` has it
            compiled in the background if that pays. Others run one after another.

    Attributes:
        members: the fits.
        taken: number of steps so far.
        instead: the engines, one for each fit, that took over; None while there are none.
    """

    def __init__(self, fits: Sequence[tuple[Scope | None, Problem]], kind: type[Engine]) -> None:
        self.members = [Member(*fit) for fit in fits]
        self.taken = 0
        self.instead: Sequence[Engine] | None = None
        self._kind = kind
        self._strategy = (kind.strategy or Strategy)(self.members)
        self._eager = [Eager(member.problem) for member in self.members]
        self._graph = [Graph(member.problem) for member in self.members]
        self._loop: JointLoop | None = None
        self._settings: dict[str, Any] = {}
        self._due = 1
        self._last_comparison = 0
        first = self.members[0]
        if kind.strategy is None or (len(fits) == 1 and first.scope is not None):
            self.instead = [kind(member.problem) for member in self.members]
        elif hasattr(first.problem.objective, "loss_and_grads"):
            self.instead = self._eager

    def advance(self, steps: int) -> Tensor:
        """Takes `steps` steps of each fit and returns the loss before each, shape (steps, fits).

        Raises:
            NonFiniteLossError: as `Engine.advance`, for the first fit that meets such a number.
        """
        blocks = []
        while steps:
            blocks.append(self._block(steps))
            steps -= len(blocks[-1])
        return torch.cat(blocks)

    def _block(self, limit: int) -> Tensor:
        """Takes at least one and at most `limit` steps."""
        if self.instead is not None:
            return self._by(self.instead, limit)
        try:
            if self.taken and (self._loop is not None or self._strategy.captures(self.taken)):
                return self._by_loop(limit)
        except (CaptureError, LoopError) as error:
            self._give_way(error)
            return self._block(limit)
        return self._strategy.by_pyro(self.taken, lambda: self._by(self._eager, 1))

    def _by(self, engines: Sequence[Engine], steps: int) -> Tensor:
        """Takes `steps` steps by other engines."""
        losses = []
        for member, engine in zip(self.members, engines, strict=True):
            with member.entered():
                engine.taken = self.taken
                losses.append(engine.advance(steps))
        self.taken += steps
        return torch.stack(losses, 1)

    def _by_loop(self, limit: int) -> Tensor:
        """Takes a block of steps in the loop, which is captured if there is none; the fits are unchanged if that fails."""
        if self.members[0].problem.rows.leaves:
            # The optimiser's state of a local table is gathered for each batch, which a loop does not do.
            self.instead = self._graph
            return self._by(self._graph, limit)
        begin, compares, known = time.perf_counter(), self.taken >= self._due, self._loop
        before = [Snapshot.of(member, values=compares) for member in self.members]
        length = MAX_COMPARED if compares or known is None else min(known.length, self._due - self.taken)
        count = int(min(limit, length, self._strategy.max_block))
        try:
            indices = self._indices(count)
            if indices:
                count = len(indices[0])
                if len(indices[0][0]) != self.members[0].problem.batches.batch_size:
                    self._restore(before)
                    return self._by(self._graph, count)
            if self._loop is None:
                self._loop = self._prepare()
            planned = rates(self.members[0].problem, count, self._settings)
            losses, packed = self._loop.advance(self.members, planned, indices)
        except (CaptureError, LoopError):
            self._restore(before)
            raise
        if compares:
            return self._compared(before, planned, losses, packed)
        if not all(bool(values.isfinite().all()) for values in (losses, *packed)):
            self._restore(before)
            return self._by(self._graph, count)
        self._write(packed)
        self.taken += count
        self._change(self._loop, (time.perf_counter() - begin) / count)
        return losses

    def _indices(self, count: int) -> list[list[Tensor]]:
        """The row numbers of each fit's next minibatches; empty if the fits have none."""
        if self.members[0].problem.batches.batch_size is None:
            return []
        found = []
        for member in self.members:
            with member.entered():
                found.append(member.problem.batches.indices(count))
        return found

    def _prepare(self) -> JointLoop:
        """Captures the step, which leaves the random states as they are."""
        before = [Snapshot.of(member) for member in self.members]
        loop, example = capture_loop(self.members, max_mapped_work=self._strategy.max_mapped_work)
        self._restore(before)
        self._settings = settings_of(self.members[0].problem.optimiser)
        return self._strategy.prepared(loop, example)

    def _restore(self, snapshots: Sequence[Snapshot]) -> None:
        for member, snapshot in zip(self.members, snapshots, strict=True):
            snapshot.restore(member)

    def _write(self, packed: Sequence[Tensor]) -> None:
        """Gives the fits the loop's results. The first fit's schedule has moved on already."""
        assert self._loop is not None
        place = SchedulePlace.of(self.members[0].problem)
        for member, values in zip(self.members, self._loop.split(packed, len(self.members)), strict=True):
            member.write(values)
            place.restore(member.problem)

    def _change(self, loop: JointLoop, seconds: float) -> None:
        """Lets the strategy change the code, or go back to Pyro, after a block that took so many seconds a step."""
        changed = self._strategy.changed(loop, self.taken, seconds)
        if changed is None:
            self.instead = self._eager
        elif changed is not loop:
            self._loop = changed
            if changed.run is not loop.run:
                self._due = self.taken

    def _compared(self, before: Sequence[Snapshot], planned: list[float], losses: Tensor, packed: Sequence[Tensor]) -> Tensor:
        """Takes again by Pyro the steps that the loop took from `before` on, and gives way if the results differ."""
        assert self._loop is not None
        loop, begun, last = self._loop, self.taken, self._last_comparison
        after = [member.random_state["torch"] for member in self.members]
        self._restore(before)
        unchecked = f"; steps {last} to {begun - 1} were not compared" if last else ""
        when = f"in steps {begun} to {begun + len(planned) - 1}{unchecked}"
        by_pyro = [PyroSteps(*fit, planned, when) for fit in zip(self.members, before, strict=True)]
        with ExitStack() as stack:
            for steps in by_pyro:
                stack.enter_context(steps.recorded())
            expected = self._by(self._eager, len(planned))
        self._last_comparison, self._due = self.taken, COMPARISON_BASE
        while self._due <= self.taken:
            self._due *= COMPARISON_BASE
        states = loop.split(packed, len(self.members))
        if [[v.shape for v in state] for state in states] != [[v.shape for v in m.values()] for m in self.members]:
            # Pyro's steps met new parameters: the step is captured with them.
            self._loop, self._due = None, self.taken
            return expected
        rounded = losses.to(loop.body.coarsest(loop.data))
        try:
            for k, steps in enumerate(by_pyro):
                steps.require_equal(after[k], rounded[:, k], expected[:, k], states[k])
        except CaptureError as error:
            self._give_way(error)
        return expected

    def _give_way(self, error: CaptureError | LoopError) -> None:
        """Leaves the fits to slower engines from here on, with a warning unless the strategy is silent about the reason."""
        several = len(self.members) > 1
        if several and isinstance(error, MappingError | DifferenceError):
            self.instead, how = [self._kind(member.problem) for member in self.members], "one after another"
        elif isinstance(error, CaptureError):
            self.instead, how = self._eager, "by Pyro alone"
        else:
            self.instead, how = self._graph, "without compiled code"
        if not isinstance(error, self._strategy.silent):
            who = "the fits run" if several else "the fit runs"
            what = "the captured step cannot be used: " if isinstance(error, CaptureError) else ""
            warnings.warn(f"{who} {how} from step {self.taken} on, since {what}{error}", stacklevel=5)
