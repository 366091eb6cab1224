"""Blocks of steps between two looks at a fit."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["Blocks"]

MIN_SECONDS = 0.1
"""Blocks grow until one takes this long: what is done between two blocks then costs little, and a progress bar still moves."""


class Blocks:
    """Lengths of blocks: 1, 2, 4, … steps, until a block takes `MIN_SECONDS`."""

    def __init__(self) -> None:
        self._length = 1

    @contextmanager
    def next(self, most: int) -> Iterator[int]:
        """The length of the next block, at most `most` steps. The steps are taken, and timed, inside the context."""
        begin, length = time.perf_counter(), min(self._length, most)
        yield length
        if length == self._length and time.perf_counter() - begin < MIN_SECONDS:
            self._length *= 2
