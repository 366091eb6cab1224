"""Several fits of one program that take their steps together."""

from __future__ import annotations

from collections.abc import Sequence

from .base import Engine
from .looped import LoopedFits
from .problem import Member
from .strategy import Strategy

__all__ = ["SimultaneousFits"]


class SimultaneousFits(LoopedFits):
    """Several fits in one loop, whose step is the captured step of one, mapped over all.

    A single fit, and fits whose step cannot be mapped (other than Gaussian draws, operations that torch cannot map), run one
    after another by `kind`, and so do fits that are found to differ from Pyro's. `Auto` takes Pyro's steps as long as
    capturing does not pay, and does not map a step of much arithmetic.

    Args:
        members: the fits: the same programs, shapes, data, optimiser, schedule and number of steps.
        kind: the engine for each fit by itself. `Graph` runs the loop operation by operation, `CompiledLoop` compiles it,
            `Auto` has it compiled in the background if that pays.
    """

    def __init__(self, members: Sequence[Member], kind: type[Engine]) -> None:
        super().__init__(members, kind, kind.strategy or Strategy)
        if len(members) == 1 or kind.strategy is None:
            self.instead = [kind(member.problem) for member in members]
