"""Comparison of a loop's results with Pyro's."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import starmap
from typing import Any

import torch
from torch import Tensor

from .eager import Eager
from .errors import DifferenceError, HiddenStateError, OtherDrawsError
from .graphs.optimiser_step import read_state, updated
from .problem import Member, Problem
from .snapshot import Snapshot

__all__ = ["EarlyStep", "PyroSteps", "agree", "require_equal_losses"]

MAX_RELATIVE = {torch.float64: 1e-9, torch.float32: 1e-4}
"""The largest relative difference between a captured step and Pyro's, by dtype: sums may be taken in another order."""
MAX_RELATIVE_MOVE = 10.0
"""The largest relative difference between moves of parameters, as a multiple of that: a move has lost digits already."""
MAX_ROUNDING = 16
"""Units of rounding, of the largest number in a tensor, by which a gradient or a repeated step may differ."""


def agree(found: Tensor | None, expected: Tensor | None) -> bool:
    """Whether two tensors are equal to rounding, relative to the largest number in them; None counts as zero."""
    if found is None or expected is None:
        return found is None and (expected is None or bool((expected == 0).all()))
    tolerance = MAX_RELATIVE.get(found.dtype, 1e-4)
    if not expected.numel():
        return found.shape == expected.shape
    largest = float(expected.detach().abs().nan_to_num(0.0, 0.0).max())
    return torch.allclose(found, expected.to(found), rtol=tolerance, atol=tolerance * (1e-12 + largest), equal_nan=True)


def require_equal_losses(found: Tensor, expected: Tensor, when: str) -> None:
    """Raises a DifferenceError if the losses differ by more than rounding."""
    if not agree(found, expected):
        raise DifferenceError(f"its loss or update differs {when}")


class PyroSteps:
    """A few steps of a fit by Pyro, recorded to compare a loop with.

    Args:
        member: the fit.
        before: its state before these steps, with values.
        rates: the learning rates of these steps.
        when: which steps they are, for messages.
    """

    def __init__(self, member: Member, before: Snapshot, rates: Sequence[float], when: str) -> None:
        self._member, self._before, self._rates, self._when = member, before, rates, when
        self._gradients: list[list[Tensor | None]] = []

    @contextmanager
    def recorded(self) -> Iterator[None]:
        """Records the gradients that the optimiser is given in each step."""
        problem: Problem = self._member.problem

        def record(*_: Any) -> None:
            self._gradients.append([None if p.grad is None else p.grad.clone() for p in problem.parameters])

        hook = problem.optimiser.register_step_pre_hook(record)
        try:
            yield
        finally:
            hook.remove()

    def require_equal(self, generator: Tensor, losses: Tensor, expected_losses: Tensor, values: Sequence[Tensor]) -> None:
        """Compares the results of a loop over these steps with the fit after Pyro's.

        Args:
            generator: the state of torch's generator after the loop.
            losses, expected_losses: the loop's and Pyro's.
            values: parameters and optimiser state after the loop.

        Raises:
            OtherDrawsError: if the loop has drawn other random numbers.
            DifferenceError: if the results differ by more than rounding.
        """
        if not torch.equal(generator, self._member.random_state["torch"]):
            raise OtherDrawsError
        expected = self._member.values()
        same = self._agree(values, expected) or self._differ_by_rounding(values, expected)
        if not (agree(losses, expected_losses) and same):
            raise DifferenceError(f"its loss or update differs {self._when}")

    def _differ_by_rounding(self, found: Sequence[Tensor], expected: Sequence[Tensor]) -> bool:
        """Whether the loop's results lie between the optimiser's for Pyro's gradients rounded down and rounded up.

        Adam divides by the size of the gradient. Where the gradient is nothing but rounding, as behind a saturated unit, Adam
        turns rounding into steps of full size. Each gradient is moved by `MAX_ROUNDING` units of rounding of the largest
        number in its tensor; gradients well above that hardly widen the bounds.
        """
        kept = [value.clone() for value in expected]
        bounds = [kept]
        try:
            bounds += [self._after_moved_gradients(sign) for sign in (-1, 1)]
        finally:
            self._member.write(kept)
        nearest = []
        for ours, *theirs in zip(found, *bounds, strict=True):
            ends = torch.stack(theirs)
            nearest.append(ours.clamp(ends.amin(0), ends.amax(0)).where(ours.isfinite(), theirs[0]))
        return self._agree(found, nearest)

    def _agree(self, found: Sequence[Tensor], expected: Sequence[Tensor]) -> bool:
        """Whether two results agree to rounding: parameters by how far they moved, which may be little beside their size."""
        assert self._before.values is not None
        starts = self._before.values.parameters
        moves = all(starmap(_moved_alike, zip(found, expected, starts, strict=False)))
        return moves and all(map(agree, found[len(starts) :], expected[len(starts) :]))

    def _after_moved_gradients(self, sign: int) -> list[Tensor]:
        optimiser, parameters = self._member.problem.optimiser, self._member.problem.parameters
        self._before.restore_values(self._member)
        for exact, rate in zip(self._gradients, self._rates, strict=True):
            moved = [g if g is None else g + sign * _rounding(g) for g in exact]
            lr = torch.tensor(rate, dtype=torch.float64)
            self._member.write(updated(optimiser, parameters, moved, read_state(optimiser, parameters), lr))
        return [value.clone() for value in self._member.values()]


class EarlyStep:
    """An early step by Pyro, which is evaluated again later.

    A program that keeps no state between calls gives the same loss and gradients for the same parameters, data and random
    numbers, whenever it is called. One that does not remembers something, or looks at the time, wherever that is hidden.

    Args:
        member: the fit, before this step.
        eager: evaluates its loss and gradients.
        number: of the step.
    """

    def __init__(self, member: Member, eager: Eager, number: int) -> None:
        self._member, self._eager, self._number = member, eager, number
        self._before = Snapshot.of(member, values=True)
        self._found: list[Tensor | None] = []

    @contextmanager
    def recorded(self) -> Iterator[None]:
        """Records the gradients of the first step that is taken inside the context."""
        parameters = self._member.problem.parameters

        def record(*_: Any) -> None:
            if not self._found:
                gradients = [None if p.grad is None else p.grad.clone() for p in parameters]
                self._found = [torch.tensor(self._eager.last_loss, dtype=torch.float64), *gradients]

        hook = self._member.problem.optimiser.register_step_pre_hook(record)
        try:
            yield
        finally:
            hook.remove()

    def require_same(self) -> None:
        """Evaluates the step again and leaves the fit as it is.

        Raises:
            HiddenStateError: if loss or gradients differ by more than rounding.
        """
        member, problem = self._member, self._member.problem
        now, known = Snapshot.of(member, values=True), len(problem.parameters)
        try:
            self._before.restore(member)
            with member.entered():
                loss = self._eager.step(next(problem.batches))
            found = [torch.tensor(loss, dtype=torch.float64), *(p.grad for p in problem.parameters[:known])]
        finally:
            for parameter in problem.parameters:
                parameter.grad = None
            now.restore(member)
        dtype = max((p.dtype for p in problem.parameters), key=lambda dtype: torch.finfo(dtype).eps)
        for ours, theirs in zip(found, self._found, strict=False):
            if not _repeats(ours, theirs, torch.finfo(dtype).eps):
                raise HiddenStateError(
                    f"it keeps state between calls or depends on the time: for the parameters and random numbers of step "
                    f"{self._number} its loss was {float(self._found[0] or 0):.9g} and is {loss:.9g} now"
                )


def _moved_alike(found: Tensor, expected: Tensor, start: Tensor) -> bool:
    if not expected.numel():
        return found.shape == expected.shape
    largest = float((expected - start).abs().nan_to_num(0.0, 0.0).max())
    rounding = MAX_ROUNDING * torch.finfo(found.dtype).eps * float(expected.abs().nan_to_num(0.0, 0.0).max())
    tolerance = MAX_RELATIVE_MOVE * MAX_RELATIVE.get(found.dtype, 1e-4) * largest + rounding
    return torch.allclose(found, expected.to(found), rtol=0.0, atol=tolerance, equal_nan=True)


def _rounding(gradient: Tensor) -> Tensor:
    largest = gradient.abs().max() if gradient.numel() else gradient.sum()
    return MAX_ROUNDING * torch.finfo(gradient.dtype).eps * largest


def _repeats(found: Tensor | None, expected: Tensor | None, eps: float) -> bool:
    """Whether a tensor is computed again, up to threads that may add in another order; None counts as zero."""
    if found is None or expected is None:
        return found is None and expected is None
    if found.shape != expected.shape:
        return False
    if torch.equal(found, expected):
        return True
    largest = float(expected.abs().max()) if expected.numel() else 0.0
    return torch.allclose(found, expected, rtol=0.0, atol=MAX_ROUNDING * eps * largest, equal_nan=True)
