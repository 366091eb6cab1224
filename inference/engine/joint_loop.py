"""The captured step of n ≥ 1 fits as a loop."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from typing import NamedTuple

import torch
from torch import Tensor, fx

from .errors import LoopError, MappingError
from .graphs.capture import capture
from .graphs.loop_body import Loop, loop
from .graphs.noise import Noise
from .graphs.optimiser_step import require_plain, updated
from .graphs.sources import sources_forgotten
from .graphs.threads import fewest_for, fixed_threads, work
from .graphs.value_sizes import sized_by_values
from .graphs.vmapped import Layout, fits_along, map_over_fits
from .inductor.build import RunLoop
from .problem import Member

__all__ = ["JointLoop", "capture_loop"]

MAX_STEPS = 1024
"""Steps in one call of a loop."""
MAX_LOSSES = 2048
"""Losses of all fits in one call."""
MAX_NOISE = 1 << 22
"""Random numbers that are drawn before one call."""


class JointLoop(NamedTuple):
    """A loop of n ≥ 1 fits that can be run.

    Attributes:
        body: one step of the loop.
        layout: of the fits in the loop's state.
        data: inputs that are the same at each step.
        noise: the draws of one fit's step that are made before the loop; None if there are none, or if they are made in it.
        length: the largest number of steps of one call.
        threads: the number of threads to run with.
        run: the loop, compiled or not.
    """

    body: Loop
    layout: Layout
    data: list[Tensor]
    noise: Noise | None
    length: int
    threads: int
    run: RunLoop

    def inputs(self, members: Sequence[Member], rates: Sequence[float], rows: Sequence[Sequence[Tensor]]) -> list[Tensor]:
        """The inputs of `run`, from the fits' present state.

        Args:
            members: the fits.
            rates: the learning rate of each step.
            rows: for each fit its minibatches' row numbers and its noise, tensors of shape (steps, …).
        """
        state = self.layout.joint([member.values() for member in members])
        return self.body.inputs(self.length, state, rates, self.data, self.layout.joint_rows(rows))

    def advance(
        self, members: Sequence[Member], rates: Sequence[float], indices: Sequence[Sequence[Tensor]]
    ) -> tuple[Tensor, list[Tensor]]:
        """Runs some steps. Of the fits themselves only the random states change.

        Args:
            members: the fits.
            rates: the learning rate of each step.
            indices: for each fit the row numbers of its minibatches; empty if there are none.

        Returns:
            The losses, shape (steps, fits), and the packed joint state after the steps.
        """
        rows = []
        for k, member in enumerate(members):
            with member.drawing():
                noise = [] if self.noise is None else self.noise.draw(len(rates))
            rows.append([*([torch.stack(list(indices[k]))] if indices else []), *noise])
        with fixed_threads(self.threads), torch.no_grad():
            _, losses, *packed = self.run(self.inputs(members, rates, rows))
        return losses[: len(rates)].reshape(len(rates), len(members)).clone(), packed

    def split(self, packed: Sequence[Tensor], fits: int) -> list[list[Tensor]]:
        """Splits the packed joint state into one state per fit, in the order of `Member.values`."""
        return self.layout.split(self.body.packing.unpack(packed), fits)


def capture_loop(members: Sequence[Member], *, max_mapped_work: float = inf) -> tuple[JointLoop, list[Tensor]]:
    """Captures the step of the first fit, maps it over all if there are several, and makes it the body of a loop.

    Args:
        members: fits by the same programs, on the same data, each after its first step.
        max_mapped_work: the largest number of operations of a step that is mapped.

    Returns:
        The loop, not compiled, and an example of its inputs.

    Raises:
        CaptureError: if the step cannot be captured.
        MappingError: if it cannot be mapped over the fits.
        LoopError: if it cannot be repeated in a loop.
    """
    batches, parameters = members[0].problem.batches, members[0].problem.parameters
    states = [member.values() for member in members]
    data = [value for value in batches.args if isinstance(value, Tensor)]
    if any(value.device.type != "cpu" for value in (*states[0], *data)):
        raise LoopError("compiled code runs on a CPU only")
    index = None if batches.batch_size is None else torch.arange(batches.batch_size)
    step = _captured_step(members[0], data, index)
    if len(members) == 1:
        layout, state, noise = Layout(None, []), states[0], None
        by_step = 0 if index is None else 1
    else:
        if len({tuple((value.shape, value.dtype) for value in state) for state in states}) > 1:
            raise MappingError("the fits differ in the shapes of their parameters")
        if work(step) > max_mapped_work:
            raise MappingError("a step of this much arithmetic gains nothing")
        layout = Layout(fits_along(step), [True] * len(parameters) + _differs_by_fit(members[0]))
        state = layout.joint([[value.clone() for value in state] for state in states])
        assert layout.along is not None
        rows = None if index is None else torch.stack([index] * len(members), layout.along)
        step, noise = map_over_fits(step, state, data, rows, layout)
        by_step = (0 if index is None else 1) + (0 if noise is None else len(noise.packing.groups))
    with sources_forgotten():
        body = loop(step, state, len(data) + by_step, by_step=by_step)
    length = min(MAX_STEPS, MAX_LOSSES // len(members))
    if noise is not None:
        length = min(length, MAX_NOISE // (len(members) * noise.numbers))
    if index is not None:
        length = min(length, len(batches.args[0]) // len(index))
    found = JointLoop(body, layout, data, noise, max(1, length), fewest_for(step), body.run)
    by_fit = [*([] if index is None else [index.unsqueeze(0)]), *([] if noise is None else noise.vectors(1))]
    return found, found.inputs(members, [0.0], [by_fit for _ in members])


def _captured_step(member: Member, data: Sequence[Tensor], index: Tensor | None) -> fx.GraphModule:
    """The step as a graph of (*state, rate, *data[, index]), with the optimiser's update."""
    problem = member.problem
    batches, parameters = problem.batches, problem.parameters
    require_plain(problem.optimiser)
    remembered = member.values()[len(parameters) :]
    rate = torch.tensor(0.0, dtype=torch.float64)

    def step() -> list[Tensor]:
        batch = batches.of(index)
        value, surrogate = problem.objective(problem.model, problem.guide, batch.args, batch.kwargs)
        gradients = torch.autograd.grad(surrogate, parameters, allow_unused=True)
        return [value.detach(), *updated(problem.optimiser, parameters, gradients, remembered, rate)]

    with member.entered():
        args = [*remembered, rate, *data, *([] if index is None else [index])]
        found = capture(step, parameters, args, fixed=data)
    if (node := sized_by_values(found.graph)) is not None:
        raise LoopError(
            f"the size of a tensor depends on the data, by {node.target}, so that compiled code fits these data only"
        )
    return found


def _differs_by_fit(member: Member) -> list[bool]:
    """For each tensor of the optimiser's state, whether it differs from fit to fit: counts of steps do not."""
    problem = member.problem
    return [key != "step" for p in problem.parameters for key in problem.optimiser.state.get(p, {})]
