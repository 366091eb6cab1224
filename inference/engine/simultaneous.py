"""Many steps of n ≥ 1 fits of one program in one loop, compared with Pyro."""

from __future__ import annotations

import time
import warnings
import zlib
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack
from typing import Any

import torch
from torch import Tensor

from ..programs.isolation import Scope
from .base import Engine
from .comparison import EarlyStep, PyroSteps, require_equal_losses
from .eager import Eager
from .errors import CaptureError, DifferenceError, LoopError, MappingError
from .graph import Graph
from .graphs.optimiser_step import settings_of
from .graphs.planned_rates import SchedulePlace, rates
from .joint_loop import JointLoop, capture_loop
from .losses import Losses
from .problem import Member, Problem
from .random_steps import RandomSteps
from .snapshot import Snapshot
from .state_watch import StateWatch
from .strategy import Strategy

__all__ = ["SimultaneousFits"]

MAX_FIRST_COMPARED = 3
"""Steps of the comparison before a loop is used. More than one, to cover what a step hands on to the next."""
MAX_COMPARED = 1
"""Steps of a later comparison."""


class SimultaneousFits:
    """Takes the steps of n ≥ 1 fits of the same programs in one loop.

    The first step is Pyro's; it gives the optimisers their state. Once the strategy says so, the step is captured and runs in
    a loop, block by block. The loop repeats a few of Pyro's steps before it is used, at steps drawn at random (`RandomSteps`),
    and before the fit is looked at; at these, Pyro's results are kept. If they differ, the fits go back to the last
    comparison that held, and slower engines take the steps since then again, with one warning that says why. A block with a
    number that is not finite is taken back, compared, and taken again by `Graph`, which names the step.

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
        self._graph = [Graph(member.problem, watched=False) for member in self.members]
        self._loop: JointLoop | None = None
        self._settings: dict[str, Any] = {}
        self._watch = StateWatch(self.members)
        self._early: list[EarlyStep] = []
        self._random_steps = RandomSteps(zlib.crc32(torch.get_rng_state().numpy().tobytes()))
        self._due, self._compared_steps = 0, MAX_FIRST_COMPARED
        self._held: list[Snapshot] | None = None
        """The state at the last comparison that held; None if nothing was captured since."""
        self._held_at = 0
        self._losses = [Losses() for _ in fits]
        self._changed_from = 0
        self._ends = False
        """Whether Pyro goes on after the next comparison."""
        first = self.members[0]
        if kind.strategy is None or (len(fits) == 1 and first.scope is not None):
            self.instead = [kind(member.problem) for member in self.members]
        elif hasattr(first.problem.objective, "loss_and_grads"):
            self.instead = self._eager

    def advance(self, steps: int, *, confirm: bool = False) -> Tensor:
        """Takes `steps` steps of each fit.

        Args:
            steps: how many.
            confirm: as for `Engine.advance`.

        Returns:
            Losses as `Engine.advance` returns them, shape (at least steps, fits).

        Raises:
            NonFiniteLossError: as `Engine.advance`, for the first fit that meets such a number.
        """
        self._changed_from, end = self.taken, self.taken + steps
        while self.taken < end:
            self._block(end - self.taken, confirm)
        found = torch.stack([losses.since(self._changed_from) for losses in self._losses], 1)
        if confirm:
            # Whoever looks at the fit may change it: it does not go back behind that.
            self._held = None
            for losses in self._losses:
                losses.clear()
        return found

    def _block(self, limit: int, confirm: bool) -> None:
        """Takes at least one and at most `limit` steps."""
        if self.instead is not None:
            self._by(self.instead, limit, confirm=confirm)
            return
        try:
            if self.taken and (self._loop is not None or self._strategy.captures(self.taken)):
                self._by_loop(limit, confirm)
                return
        except (CaptureError, LoopError) as error:
            again = self._go_back()
            self._give_way(error, again)
            if again:
                self._by(self.instead or self._eager, again)
            return
        self._strategy.by_pyro(self.taken, self._by_pyro)

    def _by_pyro(self) -> None:
        """Takes a step by Pyro. The first ones are watched for state that the programs keep."""
        with ExitStack() as stack:
            if self.taken >= self._strategy.first_watched:
                stack.enter_context(self._watch.step())
            stack.enter_context(self._first_recorded())
            self._by(self._eager, 1)

    def _first_recorded(self) -> AbstractContextManager[Any]:
        """Records the next step by Pyro, if it is the first after step 0, to take it again later."""
        stack = ExitStack()
        if self.taken and not self._early:
            number = self.taken
            self._early = [EarlyStep(*fit, number) for fit in zip(self.members, self._eager, strict=True)]
            for early in self._early:
                stack.enter_context(early.recorded())
        return stack

    def _by(self, engines: Sequence[Engine], steps: int, *, confirm: bool = False) -> None:
        """Takes `steps` steps by other engines."""
        losses = []
        for member, engine in zip(self.members, engines, strict=True):
            with member.entered():
                engine.taken = self.taken
                losses.append(engine.advance(steps, confirm=confirm))
        self._add(steps, losses)

    def _add(self, steps: int, losses: Sequence[Tensor]) -> None:
        """Counts `steps` new steps, and records losses as `Engine.advance` returns them."""
        self.taken += steps
        for own, block in zip(self._losses, losses, strict=True):
            own.add(self.taken, block)
            self._changed_from = min(self._changed_from, self.taken - len(block))

    def _by_loop(self, limit: int, confirm: bool) -> None:
        """Takes a block of steps in the loop, which is captured if there is none."""
        if self.members[0].problem.rows.leaves:
            # The optimiser's state of a local table is gathered for each batch, which a loop does not do.
            self._watch.check()
            self.instead = self._graph
            self._by(self._graph, limit, confirm=confirm)
            return
        known = self._loop
        compares = known is None or self.taken >= self._due or (confirm and limit <= MAX_COMPARED)
        if compares:
            self._require_stateless()
        begin = time.perf_counter()
        before = [Snapshot.of(member, values=compares or self._held is None) for member in self.members]
        if self._held is None:
            self._held, self._held_at = before, self.taken
        length = self._compared_steps
        if known is not None and not compares:
            length = min(known.length, self._due - self.taken, limit - MAX_COMPARED * confirm)
        count = int(min(limit, length, self._strategy.max_block))
        try:
            indices = self._indices(count)
            if indices:
                count = len(indices[0])
                if len(indices[0][0]) != self.members[0].problem.batches.batch_size:
                    self._restore(before)
                    self._by_graph(count, confirm=compares)
                    return
            if self._loop is None:
                self._loop = self._prepare()
            planned = rates(self.members[0].problem, count, self._settings)
            losses, packed = self._loop.advance(self.members, planned, indices)
        except (CaptureError, LoopError):
            self._restore(before)
            raise
        if compares:
            self._compare(before, planned, losses, packed)
        elif all(bool(values.isfinite().all()) for values in (losses, *packed)):
            self._write(packed)
            self._add(count, losses.unbind(1))
            self._change(self._loop, (time.perf_counter() - begin) / count)
        else:
            self._restore(before)
            self._not_finite(count)

    def _not_finite(self, steps: int) -> None:
        """Lets `Graph` name the step that is not finite, once Pyro has agreed that the fit came here."""
        if self._held_at < self.taken:
            self._due = self.taken
        else:
            self._by_graph(steps, confirm=False)

    def _by_graph(self, steps: int, *, confirm: bool) -> None:
        """Takes steps that the loop cannot take, as a part of what is compared."""
        losses = []
        for member, graph in zip(self.members, self._graph, strict=True):
            with member.entered():
                graph.taken = self.taken
                losses.append(graph.provisional(steps, confirm=confirm))
        self._add(steps, losses)

    def _require_stateless(self) -> None:
        """Raises a HiddenStateError if the programs keep state between calls, a LoopError if the optimiser does."""
        if self._loop is None:
            self._watch.check()
        for early in self._early:
            early.require_same()

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
            # What the loop has done so far is compared before Pyro goes on.
            self._due, self._ends = self.taken, True
        elif changed is not loop:
            self._loop = changed
            if changed.run is not loop.run:
                self._due, self._compared_steps = self.taken, MAX_FIRST_COMPARED

    def _compare(self, before: Sequence[Snapshot], planned: list[float], losses: Tensor, packed: Sequence[Tensor]) -> None:
        """Takes by Pyro the steps that the loop took from `before` on. Raises a CaptureError if the results differ."""
        assert self._loop is not None
        loop, begun = self._loop, self.taken
        after = [member.random_state["torch"] for member in self.members]
        self._restore(before)
        when = f"in steps {begun} to {begun + len(planned) - 1}"
        by_pyro = [PyroSteps(*fit, planned, when) for fit in zip(self.members, before, strict=True)]
        with ExitStack() as stack:
            stack.enter_context(self._first_recorded())
            for steps in by_pyro:
                stack.enter_context(steps.recorded())
            self._by(self._eager, len(planned))
        expected = torch.stack([own.since(begun) for own in self._losses], 1)
        states = loop.split(packed, len(self.members))
        rounded = losses.to(loop.body.coarsest(loop.data))
        try:
            if [[v.shape for v in state] for state in states] != [[v.shape for v in m.values()] for m in self.members]:
                # Pyro's steps met new parameters: the step is captured with them.
                require_equal_losses(rounded[:1], expected[:1], when)
                self._loop = None
            else:
                for k, steps in enumerate(by_pyro):
                    steps.require_equal(after[k], rounded[:, k], expected[:, k], states[k])
        except CaptureError as error:
            if self._held_at < begun:
                raise
            self._give_way(error, 0)
            return
        self._held, self._compared_steps = None, MAX_COMPARED
        self._due = self._random_steps.after(self.taken)
        if self._ends:
            self.instead = self._eager

    def _go_back(self) -> int:
        """Returns the fits to the last comparison that held. Returns the number of steps to take again."""
        if self._held is None:
            return 0
        again = self.taken - self._held_at
        if again:
            self._restore(self._held)
            self.taken = self._held_at
        self._held = None
        return again

    def _give_way(self, error: CaptureError | LoopError, again: int) -> None:
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
            redone = f"; the {again} steps since the last comparison that held are taken again" if again else ""
            warnings.warn(f"{who} {how} from step {self.taken} on, since {what}{error}{redone}", stacklevel=5)
