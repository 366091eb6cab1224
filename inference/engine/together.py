"""Several fits of one program, which differ in their seeds, as one."""

from __future__ import annotations

import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from subprocess import CalledProcessError
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..programs.isolation import Scope
from .auto import CAPTURE, COMPILATION, WORTH, Auto, Wanted
from .base import Engine, Problem
from .compiled import CHECK_EVERY, CHECKED, CompiledLoop
from .eager import Eager
from .graph import Graph, agree
from .graphs.capture import CaptureError, capture
from .graphs.hidden_state import memory
from .graphs.loop_body import Loop, loop
from .graphs.noise import Noise
from .graphs.optimiser_step import PlainOptimiserError, read_state, require_plain, settings_of, updated, write_state
from .graphs.planned_rates import place_of, put_back, rates
from .graphs.threads import WORTH as LARGE
from .graphs.threads import fewest_for, fixed_threads, work
from .graphs.vmapped import Layout, batched, fits_along
from .inductor import cache
from .inductor.background import Background
from .inductor.build import BuildError, Compiled

__all__ = ["Member", "Together"]

MOST_LOSSES = 2048
"""Of all fits in one call of the loop, which hands them on at each step."""
MOST_NUMBERS = 1 << 22
"""Of noise, in one call."""


@dataclass(frozen=True)
class Member:
    """One of the fits."""

    scope: Scope
    """What it runs in."""
    problem: Problem


class Together:
    """Takes the steps of all fits in one loop, whose step is the captured one mapped over them.

    Each fit draws its minibatches and its noise from its own generator, in its own order, and so takes the trajectory that it
    takes alone, to rounding; this is checked against Pyro for each of them at steps 1, 4, 16, 64, …. Each fit runs by itself
    if the step cannot be mapped (other than Gaussian draws, Local guides on minibatches), if that would not pay (`Auto` with
    few steps, or a step of much arithmetic), and from the step on where it is found to differ.

    Args:
        members: the fits: the same programs, shapes, data, optimiser and number of steps.
        kind: the engine that would run each of them. `Graph` runs the mapped step operation by operation, `CompiledLoop`
            compiles it, `Auto` has it compiled in the background if that pays.

    Attributes:
        taken: number of steps so far.
        alone: the engines that run the fits each by itself, if they do.
    """

    def __init__(self, members: Sequence[Member], kind: type[Engine]) -> None:
        self.members = members
        self.kind = kind
        self.taken = 0
        self.alone: list[Engine] | None = None
        self._eager = [Eager(member.problem) for member in members]
        self._graph = [Graph(member.problem) for member in members]
        self._ready: Ready | None = None
        self._settings: dict[str, Any] = {}
        self._due = 2
        self._wanted: Wanted | None = None
        self._building: Background | None = None
        problem = members[0].problem
        if len(members) == 1 or hasattr(problem.objective, "loss_and_grads") or not issubclass(kind, Graph | CompiledLoop):
            self._part(kind)

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

    def _block(self, most: int) -> Tensor:
        if self.alone is not None:
            return self._apart(self.alone, most)
        if self.taken < 2:
            # They give the optimisers their state, and show whether the programs remember something.
            return self._first_step()
        if self._ready is None:
            try:
                self._ready = self._prepare()
            except CaptureError:
                self._part(self.kind)
            except PlainOptimiserError as error:
                self._without_loop(error)
            return self._block(most)
        check = self.taken >= self._due
        count = min(most, self._ready.length, CHECKED if check else self._due - self.taken)
        indices = self._indices(count)
        if indices is not None:
            count = len(indices[0])
            if len(indices[0][0]) != self.members[0].problem.batches.batch_size:
                return self._by(self._graph, count, indices)
        try:
            return self._checked(count, indices) if check else self._run(count, indices)
        except PlainOptimiserError as error:
            self._without_loop(error)
            assert self.alone is not None
            return self._by(self.alone, count, indices)

    def _part(self, kind: type[Engine]) -> None:
        self.alone = [kind(member.problem) for member in self.members]
        for engine in self.alone:
            engine.taken = self.taken

    def _without_loop(self, error: PlainOptimiserError) -> None:
        warnings.warn(f"each fit runs by itself and without compiled code, since {error}", stacklevel=5)
        self._part(Graph)

    def _apart(self, engines: Sequence[Engine], steps: int) -> Tensor:
        losses = []
        for member, engine in zip(self.members, engines, strict=True):
            with member.scope.entered():
                losses.append(engine.advance(steps))
        self.taken += steps
        return torch.stack(losses, 1)

    def _by(self, engines: Sequence[Engine], count: int, indices: list[list[Tensor]] | None) -> Tensor:
        """Steps on given batches, each fit by itself."""
        losses = torch.empty(count, len(engines), dtype=torch.float64)
        for k, (member, engine) in enumerate(zip(self.members, engines, strict=True)):
            batches = member.problem.batches
            with member.scope.entered():
                engine.taken = self.taken
                for step in range(count):
                    losses[step, k] = engine.take(batches.of(None if indices is None else indices[k][step]))
                    engine.taken = self.taken + step + 1
        self.taken += count
        return losses

    def _first_step(self) -> Tensor:
        """One step of each by Pyro, and whether it is right, and pays, to go on together."""
        problem = self.members[0].problem
        watched = (problem.model, problem.guide, problem.objective, problem.batches.transform) if self.taken == 1 else ()
        losses: list[Tensor] = []
        remembers = False
        for member, eager in zip(self.members, self._eager, strict=True):
            with member.scope.entered():
                before = [] if losses else memory(*watched, learned=problem.parameters)
                losses.append(eager.advance(1))
                remembers |= len(losses) == 1 and memory(*watched, learned=problem.parameters) != before
        self.taken += 1
        if remembers:
            self._part(Eager)
        elif self.taken == 2 and (problem.rows.leaves or not self._pays()):
            self._part(self.kind)
        return torch.stack(losses, 1)

    def _pays(self) -> bool:
        """Whether capturing does; `Graph` and `CompiledLoop` are told to."""
        steps = self.members[0].problem.steps
        return not issubclass(self.kind, Auto) or (
            steps is not None and len(self.members) * (steps - self.taken) > WORTH * CAPTURE
        )

    def _indices(self, count: int) -> list[list[Tensor]] | None:
        """The rows of each fit's next minibatches; None if there are none."""
        if self.members[0].problem.batches.batch_size is None:
            return None
        found = []
        for member in self.members:
            with member.scope.entered():
                found.append(member.problem.batches.indices(count))
        return found

    def _prepare(self) -> Ready:
        """Captures the step of the first fit and maps it over all."""
        first = self.members[0].problem
        batches, parameters = first.batches, first.parameters
        require_plain(first.optimiser)
        self._settings = settings_of(first.optimiser)
        remembered = read_state(first.optimiser, parameters)
        states = [[*m.problem.parameters, *read_state(m.problem.optimiser, m.problem.parameters)] for m in self.members]
        layouts = [[(value.shape, value.dtype, value.device.type) for value in state] for state in states]
        if any(layout != layouts[0] for layout in layouts) or any(device != "cpu" for *_, device in layouts[0]):
            raise CaptureError("the fits differ in their parameters, or are not on a CPU")
        data = [value for value in batches.args if isinstance(value, Tensor)]
        index = None if batches.batch_size is None else torch.arange(batches.batch_size)
        rate = torch.tensor(0.0, dtype=torch.float64)

        def step() -> list[Tensor]:
            batch = batches.of(index)
            value, surrogate = first.objective(first.model, first.guide, batch.args, batch.kwargs)
            gradients = torch.autograd.grad(surrogate, parameters, allow_unused=True)
            return [value.detach(), *updated(first.optimiser, parameters, gradients, remembered, rate)]

        with self.members[0].scope.entered():
            rng = torch.get_rng_state()
            try:
                captured = capture(step, parameters, [*remembered, rate, *data, *([] if index is None else [index])])
            finally:
                torch.set_rng_state(rng)
        if issubclass(self.kind, Auto) and work(captured) > LARGE:
            raise CaptureError("a large step gains nothing")
        layout = Layout(fits_along(captured), [True] * len(parameters) + _own(first))
        joint = layout.joint([[value.detach() for value in state] for state in states])
        indices = None if index is None else torch.stack([index] * len(self.members), layout.along)
        mapped, noise = batched(captured, joint, data, indices, own=layout.own)
        by_step = (0 if index is None else 1) + (0 if noise is None else len(noise.packing.groups))
        body = loop(mapped, joint, len(data) + by_step, by_step=by_step)
        length = MOST_LOSSES // len(self.members)
        if noise is not None:
            length = min(length, MOST_NUMBERS // (len(self.members) * noise.numbers))
        if index is not None:
            length = min(length, len(batches.args[0]) // len(index))
        ready = Ready(body, layout, data, noise, max(1, length), fewest_for(mapped), body.run)
        return self._obtain(ready, index)

    def _obtain(self, ready: Ready, index: Tensor | None) -> Ready:
        """`ready` with its loop compiled, if this kind of engine compiles and it is on disk or made now."""
        if not issubclass(self.kind, CompiledLoop):
            return ready
        noise = [] if ready.noise is None else ready.noise.vectors(1)
        rows = ready.layout.rows([[*([] if index is None else [index.unsqueeze(0)]), *noise] for _ in self.members])
        example = ready.inputs(ready.layout.joint(self._states()), [0.0], rows)
        entry = cache.entry(ready.loop, example, threads=ready.threads)
        found = cache.find(entry, self._nickname)
        if found is None and issubclass(self.kind, Auto):
            self._wanted = Wanted(entry, example, ready.threads)
        elif found is None:
            try:
                cache.make(entry, ready.loop, example, threads=ready.threads)
                found = cache.find(entry, self._nickname)
            except BuildError as error:
                warnings.warn(f"the fits run without compiled code, since {error}", stacklevel=6)
        return ready if found is None else ready._replace(run=found)

    def _change(self, seconds: float) -> None:
        """Has the loop compiled if that pays at so many seconds a step, and takes it into use when it is ready."""
        steps, ready, wanted = self.members[0].problem.steps, self._ready, self._wanted
        assert ready is not None
        assert wanted is not None
        assert steps is not None
        if self._building is None and seconds * (steps - self.taken) > COMPILATION:
            try:
                self._building = Background(wanted.entry, ready.loop, wanted.example, threads=wanted.threads)
            except (OSError, CalledProcessError):
                self._wanted = None
        elif self._building is not None and self._building.finished:
            self._wanted = None
            found = cache.find(wanted.entry, self._nickname)
            if found is None:
                warnings.warn(f"the fits run without compiled code, since {self._building.failure}", stacklevel=6)
            else:
                self._ready, self._due = ready._replace(run=found), self.taken

    @property
    def _nickname(self) -> str:
        return f"{cache.nickname(self.members[0].problem)}-{len(self.members)}"

    def _run(self, count: int, indices: list[list[Tensor]] | None) -> Tensor:
        """The loop's steps; by `Graph`, if there is a number among the results that is not finite, so that it is found."""
        first, ready, begin = self.members[0].problem, self._ready, time.perf_counter()
        assert ready is not None
        place, before = place_of(first), [member.scope.rng for member in self.members]
        planned = rates(first, count, self._settings)
        losses, joint = self._loop(planned, indices)
        if not all(bool(value.isfinite().all()) for value in (losses, *joint)):
            put_back(first, place)
            for member, rng in zip(self.members, before, strict=True):
                member.scope.rng = rng
            return self._by(self._graph, count, indices)
        place = place_of(first)
        for member, state in zip(self.members, ready.layout.apart(joint, len(self.members)), strict=True):
            parameters = member.problem.parameters
            with torch.no_grad():
                for parameter, value in zip(parameters, state, strict=False):
                    parameter.copy_(value)
                write_state(member.problem.optimiser, parameters, state[len(parameters) :])
            put_back(member.problem, place)
        self.taken += count
        if self._wanted is not None and count > 1:
            self._change((time.perf_counter() - begin) / count)
        return losses

    def _checked(self, count: int, indices: list[list[Tensor]] | None) -> Tensor:
        """A few steps of each by Pyro, which the loop has to repeat."""
        first, ready = self.members[0].problem, self._ready
        assert ready is not None
        place, before = place_of(first), [member.scope.rng for member in self.members]
        losses, joint = self._loop(rates(first, count, self._settings), indices)
        states = ready.layout.apart(joint, len(self.members))
        after = [member.scope.rng["torch"] for member in self.members]
        put_back(first, place)
        for member, rng in zip(self.members, before, strict=True):
            member.scope.rng = rng
        expected = self._by(self._eager, count, indices)
        while self._due <= self.taken:
            self._due = CHECK_EVERY if self._due < CHECK_EVERY else CHECK_EVERY * self._due
        same = all(
            torch.equal(member.scope.rng["torch"], rng)
            and agree(losses[:, k].to(ready.loop.coarsest(ready.data)), expected[:, k])
            and len(states[k]) == len(now)
            and all(map(agree, states[k], now))
            for k, (member, rng, now) in enumerate(zip(self.members, after, self._states(), strict=True))
        )
        if not same:
            self._part(self.kind)
        return expected

    def _loop(self, planned: list[float], indices: list[list[Tensor]] | None) -> tuple[Tensor, list[Tensor]]:
        """Losses, and the joint state after the steps. Of the fits themselves only the random states are changed."""
        ready = self._ready
        assert ready is not None
        noise = self._noise(len(planned))
        own = noise if indices is None else [[torch.stack(of_fit), *n] for of_fit, n in zip(indices, noise, strict=True)]
        inputs = ready.inputs(ready.layout.joint(self._states()), planned, ready.layout.rows(own))
        with fixed_threads(ready.threads), torch.no_grad():
            _, losses, *packed = ready.run(inputs)
        return losses[: len(planned)].clone(), ready.loop.packing.unpack(packed)

    def _noise(self, steps: int) -> list[list[Tensor]]:
        """The noise of each fit, from its own generator."""
        assert self._ready is not None
        noise = self._ready.noise
        if noise is None:
            return [[] for _ in self.members]
        drawn = []
        with torch.random.fork_rng(devices=[]):
            for member in self.members:
                torch.set_rng_state(member.scope.rng["torch"])
                drawn.append(noise.draw(steps))
                member.scope.rng = {**member.scope.rng, "torch": torch.get_rng_state()}
        return drawn

    def _states(self) -> list[list[Tensor]]:
        problems = [member.problem for member in self.members]
        return [[*(p.detach() for p in x.parameters), *read_state(x.optimiser, x.parameters)] for x in problems]


class Ready(NamedTuple):
    """A loop of all fits that can be run.

    Attributes:
        length: the most steps of one call.
    """

    loop: Loop
    layout: Layout
    data: list[Tensor]
    noise: Noise | None
    length: int
    threads: int
    run: Compiled

    def inputs(self, state: Sequence[Tensor], rates: list[float], rows: Sequence[Tensor]) -> list[Tensor]:
        return self.loop.inputs(self.length, state, rates, self.data, rows)


def _own(problem: Problem) -> list[bool]:
    """For each tensor that the optimiser remembers, whether fits differ in it: counts of steps are the same for all."""
    return [key != "step" for p in problem.parameters for key in problem.optimiser.state.get(p, {})]
