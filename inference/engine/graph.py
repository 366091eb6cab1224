"""The step captured once, and run as plain tensor operations."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .base import Engine, Problem
from .eager import Eager
from .graphs.capture import CaptureError, capture
from .minibatches import Batch

__all__ = ["Graph", "agree"]

RELATIVE = {torch.float64: 1e-9, torch.float32: 1e-4}
"""How far a captured step may be from eager's, by dtype: the order of sums may differ, nothing else."""


class Graph(Engine):
    """Captures guide, model and gradients as one graph of tensor operations, and runs that: two to four times `Eager`'s speed.

    It draws from the global generator what `Eager` would, in the same order, so that both take the same trajectory. What
    cannot be captured runs by `Eager`, with one warning that says why. A captured step is compared with eager's, in loss,
    gradient and random state, at the first, second, fourth, eighth … step: a program whose behaviour changes with time is
    found out and run by `Eager` from there on.

    Args:
        problem: what to run. Objectives of Pyro's own are not captured, since they turn tensors into numbers.
    """

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem)
        self.eager = Eager(problem)
        self._steps = 0
        self._graphs: dict[Any, Callable[..., list[Tensor | None]]] = {}
        self._refused = hasattr(problem.objective, "loss_and_grads")

    def step(self, batch: Batch) -> float:
        if self._refused:
            return self.eager.step(batch)
        self._steps += 1
        key = tuple((value.shape, value.dtype) for value in _inputs(batch))
        graph = self._graphs.get(key)
        if graph is None or self._steps & (self._steps - 1) == 0:
            return self._compare(key, batch)
        self._hand_out(batch)
        loss, *gradients = graph(self._leaves(), _inputs(batch))
        for parameter, gradient in zip(self.problem.parameters, gradients, strict=True):
            parameter.grad = gradient
        assert loss is not None
        return float(loss)

    def _compare(self, key: Any, batch: Batch) -> float:
        """Takes the step by `Eager`, captures it if it is new, and gives up on capture if the two differ."""
        parameters = self.problem.parameters
        before = torch.get_rng_state()
        known = len(parameters)
        loss = self.eager.step(batch)
        if len(parameters) != known:
            # What was captured before knows nothing of the new ones.
            self._graphs.clear()
        after = torch.get_rng_state()
        gradients = [parameter.grad for parameter in parameters]
        try:
            if key not in self._graphs:
                torch.set_rng_state(before)
                self._graphs[key] = capture(lambda: self._evaluate(batch), parameters, _inputs(batch))
            torch.set_rng_state(before)
            found = self._graphs[key](self._leaves(), _inputs(batch))
            self._require_equal(found, [torch.tensor(loss, dtype=torch.float64), *gradients], after)
        except CaptureError as error:
            self._refused = True
            warnings.warn(f"the fit runs by Pyro alone, since its captured step cannot be used: {error}", stacklevel=3)
        finally:
            torch.set_rng_state(after)
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient
        return loss

    def _require_equal(self, found: list[Tensor | None], expected: list[Tensor | None], rng: Tensor) -> None:
        if not torch.equal(torch.get_rng_state(), rng):
            raise CaptureError("it draws other random numbers than the program")
        if len(found) != len(expected) or not all(map(agree, found, expected)):
            raise CaptureError(f"its loss or gradient differs at step {self._steps - 1}")

    def _evaluate(self, batch: Batch) -> list[Tensor | None]:
        problem = self.problem
        with problem.rows:
            value, surrogate = problem.objective(problem.model, problem.guide, batch.args, batch.kwargs)
        gradients = torch.autograd.grad(surrogate, problem.parameters, allow_unused=True)
        return [value.detach(), *(None if g is None else g.detach() for g in gradients)]

    def _leaves(self) -> list[Tensor]:
        return [parameter.detach() for parameter in self.problem.parameters]

    def _hand_out(self, batch: Batch) -> None:
        """What the program would do itself when it looks up its rows."""
        for table in self.problem.rows.leaves:
            self.problem.rows.hand_out(table, batch.kwargs["index"])


def _inputs(batch: Batch) -> list[Tensor]:
    """The tensors that differ from batch to batch."""
    return [value for value in (*batch.args, *batch.kwargs.values()) if isinstance(value, Tensor)]


def agree(found: Tensor | None, expected: Tensor | None) -> bool:
    """Whether two tensors are equal but for the order of sums, measured by the largest number in them; None is zero."""
    if found is None or expected is None:
        return found is None and (expected is None or bool((expected == 0).all()))
    tolerance = RELATIVE.get(found.dtype, 1e-4)
    largest = float(expected.detach().abs().nan_to_num(0.0, 0.0).max())
    return torch.allclose(found, expected.to(found), rtol=tolerance, atol=tolerance * (1e-12 + largest), equal_nan=True)
