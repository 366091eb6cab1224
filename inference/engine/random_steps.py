"""Steps at which captured code is compared with Pyro."""

from __future__ import annotations

import random
from math import ceil, log

__all__ = ["MAX_MEAN_GAP", "RandomSteps"]

MAX_MEAN_GAP = 1000
"""Steps between two comparisons, on average, late in a fit."""
MIN_MEAN_GAP = 4
"""The same at its beginning."""
GROWTH = 1.5
"""The mean gap as a multiple of the steps taken, in between."""


class RandomSteps:
    """Draws the gaps from geometric distributions, which do not remember: a difference may not hide between two comparisons.

    After any step the next one is compared with probability 1 / `MAX_MEAN_GAP` at least, whatever has happened before. So a
    difference that lasts k steps and leaves no trace is missed with probability (1 - 1 / `MAX_MEAN_GAP`)^k at most.

    Args:
        seed: of a generator of its own.
    """

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def after(self, taken: int) -> int:
        """The step of the next comparison, if the last one ended at step `taken`."""
        mean = min(max(MIN_MEAN_GAP, GROWTH * taken), MAX_MEAN_GAP)
        return taken + max(0, ceil(log(1.0 - self._random.random()) / log(1.0 - 1.0 / mean)) - 1)
