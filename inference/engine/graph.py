"""Steps by a captured graph of tensor operations."""

from __future__ import annotations

import warnings
import zlib
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from .base import StepwiseEngine
from .comparison import EarlyStep, agree
from .eager import Eager
from .errors import CaptureError, DifferenceError, LoopError, OtherDrawsError
from .graphs.capture import capture
from .minibatches import Batch
from .nonfinite import NonFiniteLossError
from .problem import Member, Problem
from .random_steps import RandomSteps
from .snapshot import Snapshot
from .state_watch import StateWatch
from .strategy import Strategy

__all__ = ["Graph"]


class Graph(StepwiseEngine):
    """Captures loss and gradients as one graph of tensor operations and runs that: two to four times as fast as `Eager`.

    The graph draws from the global generator what `Eager` would, in the same order, so that both take the same trajectory.
    Steps drawn at random (`RandomSteps`), and the last ones before the fit is looked at, are also taken by `Eager`, and loss,
    gradients and random state are compared. If they differ, the fit goes back to the last comparison that held and runs by
    `Eager` from there on, with one warning that says why. So does a program that cannot be captured.

    Args:
        problem: the fit. Pyro's own objectives are not captured, since they turn tensors into numbers; they run by `Eager`.
        watched: whether the first step is watched for state that the program keeps between calls.
    """

    strategy = Strategy

    def __init__(self, problem: Problem, *, watched: bool = True) -> None:
        super().__init__(problem)
        self.eager = Eager(problem)
        self._member = Member(None, problem)
        self._graphs: dict[Any, Callable[..., list[Tensor | None]]] = {}
        self._refused = hasattr(problem.objective, "loss_and_grads")
        self._watch = StateWatch([self._member])
        self._watches, self._began = watched and not self._refused, False
        self._early: EarlyStep | None = None
        self._random_steps = RandomSteps(zlib.crc32(torch.get_rng_state().numpy().tobytes()))
        self._due = 0
        self._compares = False
        self._held: Snapshot | None = None
        """The state at the last comparison that held; None if there is nothing to go back to."""
        self._held_at = 0

    def advance(self, steps: int, *, confirm: bool = False) -> Tensor:
        if self._refused:
            return super().advance(steps)
        end = self.taken + steps
        if self._held is None:
            self._hold()
        try:
            found = self._steps(steps, confirm=confirm)
        except (CaptureError, NonFiniteLossError) as error:
            if isinstance(error, NonFiniteLossError) and self._held_at == self.taken:
                raise
            again = end - self._held_at
            assert self._held is not None
            self._held.restore(self._member)
            self.taken, self._held = self._held_at, None
            if isinstance(error, CaptureError):
                self._refuse(error, f"; the {again} steps since the last comparison that held are taken again")
            # Pyro raises the same error, if the fit came here as it should.
            self._refused = True
            return super().advance(again)
        if confirm:
            # Whoever looks at the fit may change it: it does not go back behind that.
            self._held = None
        return found

    def provisional(self, steps: int, *, confirm: bool) -> Tensor:
        """Takes steps of which some are compared, without going back if they differ.

        Raises:
            CaptureError: if the program cannot be captured, or its captured step differs from Pyro's, and earlier steps were
                captured.
        """
        try:
            return self._steps(steps, confirm=confirm)
        finally:
            self._held = None

    def _steps(self, steps: int, *, confirm: bool) -> Tensor:
        losses = []
        for k in range(steps):
            self._compares = self.taken >= self._due or (confirm and k == steps - 1)
            losses.append(self._watched_step() if self._watches else self._checked_step())
        return torch.tensor(losses, dtype=torch.float64)

    def step(self, batch: Batch) -> float:
        if self._refused or self._watch.stepping:
            return self.eager.step(batch)
        key = tuple((value.shape, value.dtype) for value in _inputs(batch))
        graph = self._graphs.get(key)
        if graph is None or self._compares:
            return self._compare(key, batch)
        self._hand_out(batch)
        loss, *gradients = graph(self._leaves(), _inputs(batch))
        for parameter, gradient in zip(self.problem.parameters, gradients, strict=True):
            parameter.grad = gradient
        assert loss is not None
        return float(loss)

    def _watched_step(self) -> float:
        """Takes the first step by Pyro, and refuses to capture a program that has kept something from it."""
        with self._watch.step():
            loss = self._take(next(self.problem.batches))
        # The first batch was transformed before its step: watch another one.
        self._watches = self.problem.batches.transform is not None and not self._began
        self._began = True
        if self._watches:
            return loss
        try:
            self._watch.check()
        except LoopError:
            # The optimiser itself takes the steps.
            pass
        except CaptureError as error:
            self._refuse(error)
        self._hold()
        return loss

    def _checked_step(self) -> float:
        if self._refused or not self._compares:
            return self._take(next(self.problem.batches))
        recorded: Any = nullcontext()
        if self._early is not None:
            self._early.require_same()
        else:
            self._early = EarlyStep(self._member, self.eager, self.taken)
            recorded = self._early.recorded()
        with recorded:
            loss = self._take(next(self.problem.batches))
        self._due = self._random_steps.after(self.taken)
        self._hold()
        return loss

    def _hold(self) -> None:
        self._held, self._held_at = Snapshot.of(self._member, values=True), self.taken

    def _compare(self, key: Any, batch: Batch) -> float:
        """Takes the step by `Eager`, captures it if it is new, and compares the two."""
        parameters = self.problem.parameters
        before = torch.get_rng_state()
        known = len(parameters)
        loss = self.eager.step(batch)
        if len(parameters) != known:
            # The old graphs lack the new parameters.
            self._graphs.clear()
        after = torch.get_rng_state()
        gradients = [parameter.grad for parameter in parameters]
        try:
            if key not in self._graphs:
                torch.set_rng_state(before)
                same = self.problem.batches.batch_size is None and self.problem.batches.transform is None
                fixed = _inputs(batch) if same else []
                self._graphs[key] = capture(lambda: self._evaluate(batch), parameters, _inputs(batch), fixed=fixed)
            torch.set_rng_state(before)
            try:
                found = self._graphs[key](self._leaves(), _inputs(batch))
            except (RuntimeError, IndexError) as error:
                reason = str(error).strip().splitlines()[0]
                raise DifferenceError(f"its captured operations fail at step {self.taken} ({reason})") from error
            self._require_equal(found, [torch.tensor(loss, dtype=torch.float64), *gradients], after)
        except CaptureError as error:
            if self._held is None or self._held_at < self.taken:
                raise
            self._refuse(error)
        finally:
            torch.set_rng_state(after)
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient
        return loss

    def _refuse(self, error: CaptureError, redone: str = "") -> None:
        self._refused = True
        warnings.warn(
            f"the fit runs by Pyro alone from step {self.taken} on, since its captured step cannot be used: {error}{redone}",
            stacklevel=4,
        )

    def _require_equal(self, found: list[Tensor | None], expected: list[Tensor | None], rng: Tensor) -> None:
        if not torch.equal(torch.get_rng_state(), rng):
            raise OtherDrawsError
        if len(found) != len(expected) or not all(map(agree, found, expected)):
            raise DifferenceError(f"its loss or gradient differs at step {self.taken}")

    def _evaluate(self, batch: Batch) -> list[Tensor | None]:
        problem = self.problem
        with problem.rows:
            value, surrogate = problem.objective(problem.model, problem.guide, batch.args, batch.kwargs)
        gradients = torch.autograd.grad(surrogate, problem.parameters, allow_unused=True)
        return [value.detach(), *(None if g is None else g.detach() for g in gradients)]

    def _leaves(self) -> list[Tensor]:
        return [parameter.detach() for parameter in self.problem.parameters]

    def _hand_out(self, batch: Batch) -> None:
        """Looks up the batch's rows of the local tables, as the program would."""
        for table in self.problem.rows.leaves:
            self.problem.rows.hand_out(table, batch.kwargs["index"])


def _inputs(batch: Batch) -> list[Tensor]:
    """The tensors among the arguments: they differ from batch to batch."""
    return [value for value in (*batch.args, *batch.kwargs.values()) if isinstance(value, Tensor)]
