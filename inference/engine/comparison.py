"""Comparison of a loop's results with Pyro's."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from .errors import DifferenceError, OtherDrawsError
from .graphs.optimiser_step import read_state, updated
from .problem import Member, Problem
from .snapshot import Snapshot

__all__ = ["PyroSteps", "agree"]

MAX_RELATIVE = {torch.float64: 1e-9, torch.float32: 1e-4}
"""The largest relative difference between a captured step and Pyro's, by dtype: sums may be taken in another order."""


def agree(found: Tensor | None, expected: Tensor | None) -> bool:
    """Whether two tensors are equal to rounding, relative to the largest number in them; None counts as zero."""
    if found is None or expected is None:
        return found is None and (expected is None or bool((expected == 0).all()))
    tolerance = MAX_RELATIVE.get(found.dtype, 1e-4)
    largest = float(expected.detach().abs().nan_to_num(0.0, 0.0).max())
    return torch.allclose(found, expected.to(found), rtol=tolerance, atol=tolerance * (1e-12 + largest), equal_nan=True)


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
        same = all(map(agree, values, expected)) or self._differ_by_rounding(values, expected)
        if not (agree(losses, expected_losses) and same):
            raise DifferenceError(f"its loss or update differs {self._when}")

    def _differ_by_rounding(self, found: Sequence[Tensor], expected: Sequence[Tensor]) -> bool:
        """Whether the loop's results lie between the optimiser's for Pyro's gradients rounded down and rounded up.

        Adam divides by the size of the gradient. Where the gradient is nothing but rounding, as behind a saturated unit, Adam
        turns rounding into steps of full size. Each gradient is moved by one unit of rounding of the largest number in its
        tensor; gradients well above that hardly widen the bounds.
        """
        kept = [value.clone() for value in expected]
        bounds = [kept]
        try:
            bounds += [self._after_moved_gradients(sign) for sign in (-1, 1)]
        finally:
            self._member.write(kept)
        for ours, *theirs in zip(found, *bounds, strict=True):
            ends = torch.stack(theirs).aminmax(dim=0)
            nearest = ours.clamp(ends.min, ends.max).where(ours.isfinite(), theirs[0])
            if not agree(ours, nearest):
                return False
        return True

    def _after_moved_gradients(self, sign: int) -> list[Tensor]:
        optimiser, parameters = self._member.problem.optimiser, self._member.problem.parameters
        self._before.restore_values(self._member)
        for exact, rate in zip(self._gradients, self._rates, strict=True):
            moved = [g if g is None else g + sign * torch.finfo(g.dtype).eps * g.abs().max() for g in exact]
            lr = torch.tensor(rate, dtype=torch.float64)
            self._member.write(updated(optimiser, parameters, moved, read_state(optimiser, parameters), lr))
        return [value.clone() for value in self._member.values()]
