"""A fit that runs away from every good q, found out before its numbers overflow."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from pyro import poutine
from torch import Tensor

from ..programs.traced_pairs import is_point_mass, latents
from .run import LiveRun

__all__ = ["DivergedError", "DivergenceMonitor"]

FIRST = 100
"""Losses at the start, and of late, whose medians are compared."""
FACTOR = 1000.0
SPREADS = 5.0
"""Median deviations of the best `FIRST` losses in a row by which the last may be above those, at a rate on trial."""
DRAWS = 8


class DivergedError(FloatingPointError):
    """The ELBO fell far below where it started, or q shrank to a point.

    Attributes:
        step: the step after which it was found out.
        site: the latent whose draws are all the same, or None.
    """

    def __init__(self, step: int, site: str | None, detail: str) -> None:
        self.step = step
        self.site = site
        self.detail = detail
        super().__init__(f"the fit diverged: after {step} steps {detail}.")

    def __reduce__(self) -> Any:
        return type(self), (self.step, self.site, self.detail)


class DivergenceMonitor:
    """Looks at a fit after 1, 2, 4, 8, … times `FIRST` steps and at its end.

    It has diverged when the median of its last losses is above that of its first by `FACTOR` times their spread and size; or
    when a latent's draws agree to within ten units in the last place, of their values or of their spread at the start, so
    that its standard deviation is zero for all that the numbers can tell, though the guide is no point mass.

    Args:
        run: the fit, before its first step.
        trial: says whether a smaller rate would be tried: then losses need not have risen that much, a nat (a datum, if each
            has latents of its own) and `SPREADS` above the best are enough.
    """

    def __init__(self, run: LiveRun, *, trial: Callable[[], bool]) -> None:
        self.due = FIRST
        self._trial = trial
        self._start = {name: _spread(values) for name, values in _draws(run).items()}

    def look(self, run: LiveRun) -> None:
        """Raises a DivergedError if it has diverged."""
        self.due = 2 * self.due
        losses = run.losses
        first, last = losses[:FIRST], losses[-FIRST:]
        start = float(first.median())
        spread = float((first - start).abs().median())
        if float(last.median()) - start > FACTOR * (abs(start) + spread + 1):
            found = f"the loss has risen from {start:.3g} to {float(last.median()):.3g}, the ELBO falls to −inf; lower lr"
            raise DivergedError(run.steps, None, found)
        if len(losses) >= 2 * FIRST and (rise := _rise(losses)) > run.rows and self._trial():
            raise DivergedError(run.steps, None, f"the loss has risen by {rise:.3g}; lower lr")
        for name, values in _draws(run).items():
            size = values.abs().amax(0)
            if name in self._start and self._start[name].shape == size.shape:
                size = torch.maximum(size, self._start[name])
            if bool((_spread(values) < 10 * torch.finfo(values.dtype).eps * size).any()):
                found = (
                    f"the standard deviation of {name!r} under the guide is zero to the precision of its numbers: the density "
                    "of the model has no bound there, or lr is too high; look at that site's prior, or use Delta for a point "
                    "estimate"
                )
                raise DivergedError(run.steps, name, found)


def _rise(losses: Tensor) -> float:
    """By how much the median of the last losses is above the lowest before, less what that one's own spread allows."""
    blocks = losses[len(losses) % FIRST :].reshape(-1, FIRST)
    medians = blocks.median(1).values
    best = int(medians.argmin())
    return float(medians[-1] - medians[best] - SPREADS * (blocks[best] - medians[best]).abs().median())


def _draws(run: LiveRun) -> dict[str, Tensor]:
    """A few draws of each latent that has a density and is differentiable, shape (DRAWS, *shape).

    Gradients are recorded as in a step: without them, some guides do more work than a step does.
    """
    with torch.random.fork_rng(), torch.enable_grad(), poutine.block():
        traces = [poutine.trace(run.guide).get_trace(*run.batch.args, **run.batch.kwargs) for _ in range(DRAWS)]
    names = [n for n, s in latents(traces[0]).items() if s["fn"].has_rsample and not is_point_mass(s["fn"])]
    return {name: torch.stack([trace.nodes[name]["value"].detach() for trace in traces]) for name in names}


def _spread(values: Tensor) -> Tensor:
    return values.amax(0) - values.amin(0)
