"""Many steps at once, inside compiled code."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .base import Engine, Problem
from .eager import Eager
from .graph import Graph, agree
from .graphs.capture import CaptureError, capture
from .graphs.loop_body import Loop, loop
from .graphs.optimiser_step import PlainOptimiserError, read_state, require_plain, settings_of, updated, write_state
from .graphs.planned_rates import place_of, put_back, rates
from .graphs.threads import fewest_for, fixed_threads
from .inductor import cache
from .inductor.build import BuildError, Compiled
from .minibatches import Batch

__all__ = ["DRAWS_OTHERS", "CompiledLoop", "Ready"]

MOST_STEPS = 1024
"""Steps in one call of the compiled loop."""
CHECK_EVERY = 4
"""The loop is compared with Pyro at each power of this step, too."""
CHECKED = 3
"""Steps that are compared, for one may be right where the next is not."""


DRAWS_OTHERS = "it draws other random numbers than the program"
"""Said of a program that sets the state of torch's generator itself."""
_DIFFERS = "the fit runs by Pyro alone from here on, since its captured step cannot be used:"


class CompiledLoop(Engine):
    """Runs blocks of steps, optimiser included, in one loop of machine code: a small step takes microseconds.

    The step is captured as `Graph` does it, with minibatch, transform and the optimiser's update, and compiled by torch's
    Inductor; a second fit of the same program, in whatever process, finds it on disk (`cache.folder`). Random operations
    stay in the loop and draw from the global generator in the programs' order: the trajectory is Eager's, to rounding.
    The loop is compared with Eager's step before it is used, and again at steps 4, 16, 64, 256, ….

    What cannot be captured, or differs, runs by `Eager`; what can be captured but not compiled, by `Graph`; either with one
    warning that says why. Without a warning, Pyro's own objectives run by `Eager` and Local guides on minibatches by `Graph`.

    Args:
        problem: what to run, on a CPU.

    Attributes:
        instead: the engine that runs the fit, if this one does not.
    """

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem)
        self.eager = Eager(problem)
        self.graph = Graph(problem)
        self.instead: Engine | None = None
        if hasattr(problem.objective, "loss_and_grads"):
            self.instead = self.eager
        self._ready: Ready | None = None
        self._settings: dict[str, Any] = {}
        self._due = 1
        self._last_check = 0

    def advance(self, steps: int) -> Tensor:
        blocks = []
        while steps:
            blocks.append(self._block(steps))
            steps -= len(blocks[-1])
        return torch.cat(blocks)

    def step(self, batch: Batch) -> float:
        return self.eager.step(batch)

    def _block(self, most: int) -> Tensor:
        """At most `most` steps."""
        batches = self.problem.batches
        if self.instead is not None:
            return self._by(self.instead, [next(batches)])
        if self.taken == 0:
            # It gives the optimiser its state, and creates the leaves of local tables.
            return self._by(self.eager, [next(batches)])
        if self.problem.rows.leaves:
            self.instead = self.graph
            return self._by(self.graph, [next(batches)])
        check = self.taken >= self._due
        count = min(most, CHECKED if check else min(MOST_STEPS, self._due - self.taken))
        indices = [None] * count if batches.batch_size is None else batches.indices(count)
        if indices[0] is not None and len(indices[0]) != batches.batch_size:
            return self._by(self.graph, map(batches.of, indices))
        try:
            if self._ready is None:
                self._settings = settings_of(self.problem.optimiser)
                self._ready = self._prepare(indices[0])
            return self._checked(indices) if check else self._run(indices)
        except CaptureError as error:
            self._leave_to(self.eager, f"the fit runs by Pyro alone, since its captured step cannot be used: {error}")
        except (BuildError, PlainOptimiserError) as error:
            self._leave_to(self.graph, f"the fit runs without compiled code, since {error}")
        assert self.instead is not None
        return self._by(self.instead, map(batches.of, indices))

    def _leave_to(self, engine: Engine, why: str) -> None:
        self.instead = engine
        warnings.warn(why, stacklevel=5)

    def _prepare(self, index: Tensor | None) -> Ready:
        """Captures and compiles the step."""
        problem, batches = self.problem, self.problem.batches
        require_plain(problem.optimiser)
        parameters = problem.parameters
        remembered = read_state(problem.optimiser, parameters)
        rate = torch.tensor(0.0, dtype=torch.float64)
        data = [value for value in batches.args if isinstance(value, Tensor)]
        if any(value.device.type != "cpu" for value in (*parameters, *data)):
            raise BuildError("compiled code runs on a CPU only")

        def step() -> list[Tensor]:
            batch = batches.of(index)
            value, surrogate = problem.objective(problem.model, problem.guide, batch.args, batch.kwargs)
            gradients = torch.autograd.grad(surrogate, parameters, allow_unused=True)
            return [value.detach(), *updated(problem.optimiser, parameters, gradients, remembered, rate)]

        rng = torch.get_rng_state()
        try:
            varying = [*data, *([] if index is None else [index])]
            captured = capture(step, parameters, [*remembered, rate, *varying])
        finally:
            torch.set_rng_state(rng)
        found = loop(captured, [*parameters, *remembered], len(varying), by_step=0 if index is None else 1)
        length = MOST_STEPS if index is None else min(MOST_STEPS, len(batches.args[0]) // len(index))
        threads = fewest_for(captured)
        ready = Ready(found, data, length, threads, found.run)
        example = ready.inputs([*parameters, *remembered], [0.0], None if index is None else [index])
        return self._obtain(ready, example)

    def _obtain(self, ready: Ready, example: list[Tensor]) -> Ready:
        """`ready` with its loop compiled, for inputs like the example's."""
        entry = cache.entry(ready.loop, example, threads=ready.threads)
        nickname = cache.nickname(self.problem)
        found = cache.find(entry, nickname)
        if found is None:
            cache.make(entry, ready.loop, example, threads=ready.threads)
            found = cache.find(entry, nickname)
        if found is None:
            raise BuildError(f"what was compiled cannot be loaded from {entry}")
        return ready._replace(run=found)

    def _run(self, indices: Sequence[Tensor | None]) -> Tensor:
        """The loop's steps; by `Graph`, if there is a number among the results that is not finite, so that it is found."""
        rng, place = torch.get_rng_state(), place_of(self.problem)
        losses, state = self._loop(indices, rates(self.problem, len(indices), self._settings))
        if all(bool(values.isfinite().all()) for values in (losses, *state)):
            self._write(state)
            self.taken += len(indices)
            return losses
        torch.set_rng_state(rng)
        put_back(self.problem, place)
        return self._by(self.graph, map(self.problem.batches.of, indices))

    def _checked(self, indices: Sequence[Tensor | None]) -> Tensor:
        """A few steps by Eager, which the loop has to repeat."""
        problem, ready = self.problem, self._ready
        assert ready is not None
        begun, last = self.taken, self._last_check
        rng, place = torch.get_rng_state(), place_of(problem)
        before, planned = [value.clone() for value in self._state()], rates(problem, len(indices), self._settings)
        losses, state = self._loop(indices, planned)
        after = torch.get_rng_state()
        torch.set_rng_state(rng)
        put_back(problem, place)
        with _gradients_of(problem) as gradients:
            expected = self._by(self.eager, map(problem.batches.of, indices))
        self._last_check = self.taken
        self._due = CHECK_EVERY
        while self._due <= self.taken:
            self._due *= CHECK_EVERY
        now = self._state()
        if [value.shape for value in now] != ready.loop.packing.shapes:
            # The step has met new parameters.
            self._ready, self._due = None, self.taken
            return expected
        found = ready.loop.packing.unpack(state)
        if not torch.equal(after, torch.get_rng_state()):
            self._leave_to(self.eager, f"{_DIFFERS} {DRAWS_OTHERS}")
        elif not (
            agree(losses.to(ready.loop.coarsest(ready.data)), expected)
            and (all(map(agree, found, now)) or self._rounded(found, now, before, gradients, planned))
        ):
            unchecked = f"; steps {last} to {begun - 1} were not compared" if last else ""
            self._leave_to(
                self.eager, f"{_DIFFERS} its loss or update differs in steps {begun} to {self.taken - 1}{unchecked}"
            )
        return expected

    def _rounded(
        self,
        found: Sequence[Tensor],
        expected: Sequence[Tensor],
        before: Sequence[Tensor],
        gradients: Sequence[Sequence[Tensor | None]],
        rates: Sequence[float],
    ) -> bool:
        """Whether the loop's results lie where the optimiser gets from Eager's gradients rounded up, or down.

        Adam divides by the size of the gradient. Where that is nothing but rounding, as it is behind a saturated unit, whole
        steps are made of it. Each gradient is moved by one unit of rounding of the largest number in its tensor: where it is
        above that, the bounds are as narrow as without.

        Args:
            found, expected: parameters and the optimiser's memory after the steps, by the loop and by Eager.
            before: the same before them.
            gradients, rates: of each step, by Eager.
        """
        problem, kept = self.problem, [value.clone() for value in expected]
        bounds = [kept]
        try:
            for sign in (-1, 1):
                self._set(before)
                for exact, rate in zip(gradients, rates, strict=True):
                    moved = [g if g is None else g + sign * torch.finfo(g.dtype).eps * g.abs().max() for g in exact]
                    memory = read_state(problem.optimiser, problem.parameters)
                    lr = torch.tensor(rate, dtype=torch.float64)
                    self._set(updated(problem.optimiser, problem.parameters, moved, memory, lr))
                bounds.append([value.clone() for value in self._state()])
        finally:
            self._set(kept)
        for ours, *theirs in zip(found, *bounds, strict=True):
            ends = torch.stack(theirs).aminmax(dim=0)
            nearest = ours.clamp(ends.min, ends.max).where(ours.isfinite(), theirs[0])
            if not agree(ours, nearest):
                return False
        return True

    def _loop(self, indices: Sequence[Tensor | None], rates: list[float]) -> tuple[Tensor, list[Tensor]]:
        """Losses and packed state after the steps. Only the random state is changed."""
        assert self._ready is not None
        rows = None if indices[0] is None else [index for index in indices if index is not None]
        with fixed_threads(self._ready.threads), torch.no_grad():
            _, losses, *state = self._ready.run(self._ready.inputs(self._state(), rates, rows))
        return losses[: len(rates)].clone(), state

    def _state(self) -> list[Tensor]:
        parameters = self.problem.parameters
        return [*parameters, *read_state(self.problem.optimiser, parameters)]

    def _write(self, vectors: Sequence[Tensor]) -> None:
        assert self._ready is not None
        self._set(self._ready.loop.packing.unpack(vectors))

    def _set(self, values: Sequence[Tensor]) -> None:
        parameters = self.problem.parameters
        with torch.no_grad():
            for parameter, value in zip(parameters, values, strict=False):
                parameter.copy_(value)
            write_state(self.problem.optimiser, parameters, values[len(parameters) :])

    def _by(self, engine: Engine, batches: Iterable[Batch]) -> Tensor:
        """Steps by another engine."""
        losses = []
        for batch in batches:
            engine.taken = self.taken
            losses.append(engine.take(batch))
            self.taken += 1
        return torch.tensor(losses, dtype=torch.float64)


@contextmanager
def _gradients_of(problem: Problem) -> Iterator[list[list[Tensor | None]]]:
    """Takes down what gradients the optimiser is given in each step."""
    taken: list[list[Tensor | None]] = []

    def take_down(*_: Any) -> None:
        taken.append([None if p.grad is None else p.grad.clone() for p in problem.parameters])

    hook = problem.optimiser.register_step_pre_hook(take_down)
    try:
        yield taken
    finally:
        hook.remove()


class Ready(NamedTuple):
    """A loop that can be run."""

    loop: Loop
    data: list[Tensor]
    length: int
    """The most steps of one call."""
    threads: int
    run: Compiled

    def inputs(self, state: Sequence[Tensor], rates: list[float], indices: Sequence[Tensor] | None) -> list[Tensor]:
        return self.loop.inputs(self.length, state, rates, self.data, [] if indices is None else [torch.stack(list(indices))])
