"""Strategies: when a step is captured, and where the code of its loop comes from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import inf
from typing import ClassVar

from torch import Tensor

from .joint_loop import JointLoop
from .problem import Member

__all__ = ["Strategy"]


class Strategy:
    """Captures the second step and runs the loop operation by operation, without a compiler.

    Args:
        members: the fits that share the loop.

    Attributes:
        silent: reasons for giving way to another engine that are not worth a warning.
        max_mapped_work: the largest number of operations of a step that is mapped over several fits.
        max_block: the largest number of steps until `changed` is asked again.
        first_watched: the first of Pyro's steps that are watched for hidden state.
    """

    silent: ClassVar[tuple[type[Exception], ...]] = ()
    max_mapped_work: ClassVar[float] = inf
    max_block: float = inf
    first_watched: ClassVar[int] = 0

    def __init__(self, members: Sequence[Member]) -> None:
        self.members = members

    def by_pyro(self, taken: int, step: Callable[[], None]) -> None:
        """Takes step number `taken` by Pyro."""
        step()

    def captures(self, taken: int) -> bool:
        """Whether to capture the step now, after `taken` steps. A first batch was transformed before its step."""
        return taken > (self.members[0].problem.batches.transform is not None)

    def prepared(self, loop: JointLoop, example: list[Tensor]) -> JointLoop:
        """The loop as it is run at first, maybe compiled for inputs like `example`."""
        return loop

    def changed(self, loop: JointLoop, taken: int, seconds: float) -> JointLoop | None:
        """The loop to go on with after a block that took so many seconds a step; None to go on by Pyro."""
        return loop
