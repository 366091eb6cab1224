"""Detects a diverging fit before its numbers overflow."""

from __future__ import annotations

from collections.abc import Callable
from math import log
from typing import Any, NamedTuple

import torch
from pyro import poutine
from torch import Tensor

from ..programs.free_coordinates import free_coordinates
from ..programs.traced_pairs import is_point_mass, latents
from .run import LiveRun

__all__ = ["DivergedError", "DivergenceMonitor"]

WINDOW = 100
"""Losses whose median is compared with another window's: enough for a median that a few bursts of noise do not move."""
MAX_RISE = 1000.0
"""Largest rise of the median loss over its first window, in units of that window's size and spread. So large that only a fit
without return exceeds it: a start far from the optimum makes the first losses large too."""
MAX_TRIAL_RISE = 5.0
"""Median absolute deviations of the best window by which later losses may exceed it, if a smaller rate can be tried: a false
alarm then costs some steps only."""
MONITOR_DRAWS = 8
"""Draws of the guide per look: enough to see that all of them are equal."""
MIN_SPREAD = 10
"""Units in the last place: draws that differ by less are equal to the precision of their arithmetic."""
MAX_SURPRISE = 40.0
"""Nats by which −log q(h) of a draw h ~ q may exceed log V, V the volume of all numbers of its dtype: the excess t has
probability e^−t at most, for the volume where log q < −log V − t has mass V e^(−log V − t) at most."""


class DivergedError(FloatingPointError):
    """The ELBO fell far below its start, or q shrank to a point or grew past the precision of its numbers.

    Attributes:
        step: number of steps after which it was detected.
        site: the latent whose draws are all equal, or have no valid density; None if it is the ELBO that fell.
    """

    def __init__(self, step: int, site: str | None, detail: str) -> None:
        self.step = step
        self.site = site
        self.detail = detail
        super().__init__(f"the fit diverged: after {step} steps {detail}.")

    def __reduce__(self) -> Any:
        return type(self), (self.step, self.site, self.detail)


class DivergenceMonitor:
    """Looks at a fit after 1, 2, 4, 8, … times `WINDOW` steps and at its end.

    A fit has diverged if either

    - the median of its last losses exceeds that of its first by more than `MAX_RISE` times their size and spread, or
    - the guide's draws of a latent agree to within `MIN_SPREAD` units in the last place (of their values, or of their range
      at the start), though the guide is no point mass there: its standard deviation is zero numerically, or
    - log q of the guide's own draws is lower than any density over the numbers of its dtype gives, by `MAX_SURPRISE`: rounding
      has taken over, and the loss is no estimate of −ELBO.

    If a smaller rate can be tried, a smaller rise is divergence too: one nat (per datum if each datum has latents of its own)
    and `MAX_TRIAL_RISE` above the best window.

    Args:
        run: the fit, before its first step.
        smaller: returns the rate that would be tried if this run fails, or None; by default there is none.
    """

    def __init__(self, run: LiveRun, smaller: Callable[[], float | None] = lambda: None) -> None:
        self.due = WINDOW
        self._smaller = smaller
        self._start = {name: _range(found.coordinates) for name, found in _draws(run).items()}

    def look(self, run: LiveRun) -> None:
        """Raises a DivergedError if the fit has diverged."""
        self.due = 2 * self.due
        losses = run.losses
        first, last = losses[:WINDOW], losses[-WINDOW:]
        start = float(first.median())
        spread = float((first - start).abs().median())
        if float(last.median()) - start > MAX_RISE * (abs(start) + spread + 1):
            detail = f"the loss has risen from {start:.3g} to {float(last.median()):.3g}, the ELBO falls to −inf; lower lr"
            raise DivergedError(run.steps, None, detail)
        if len(losses) >= 2 * WINDOW and (rise := _rise(losses)) > run.data_count and self._smaller() is not None:
            raise DivergedError(run.steps, None, f"the loss has risen by {rise:.3g}; lower lr")
        for name, (values, log_q, coordinates) in _draws(run).items():
            if not bool((-log_q <= _log_volume(values) + MAX_SURPRISE).all()):
                detail = (
                    f"log q of the guide's own draws of {name!r} is {float(log_q.min()):.3g}, which no density over "
                    f"{values.dtype} numbers gives: its scale is too wide or too ill-conditioned for them, and the loss is "
                    "wrong; lr is too high"
                )
                raise DivergedError(run.steps, name, detail)
            size = coordinates.abs().amax(0)
            if name in self._start and self._start[name].shape == size.shape:
                size = torch.maximum(size, self._start[name])
            if bool((_range(coordinates) < MIN_SPREAD * torch.finfo(values.dtype).eps * size).any()):
                detail = (
                    f"the standard deviation of {name!r} under the guide is numerically zero: the density of the model is "
                    "unbounded there, or lr is too high; check that site's prior, or use Delta for a point estimate"
                )
                raise DivergedError(run.steps, name, detail)


def _rise(losses: Tensor) -> float:
    """The median of the last window minus the lowest median, less `MAX_TRIAL_RISE` times the spread of that lowest window."""
    windows = losses[len(losses) % WINDOW :].reshape(-1, WINDOW)
    medians = windows.median(1).values
    best = int(medians.argmin())
    return float(medians[-1] - medians[best] - MAX_TRIAL_RISE * (windows[best] - medians[best]).abs().median())


class _Draws(NamedTuple):
    """Draws of one latent, shape (MONITOR_DRAWS, *shape), and their log q in nats, shape (MONITOR_DRAWS,)."""

    values: Tensor
    log_q: Tensor
    coordinates: Tensor
    """The draws without what the support fixes or ties together."""


def _draws(run: LiveRun) -> dict[str, _Draws]:
    """Draws of each latent that has a density and reparameterised draws.

    Gradients are recorded as in a step: without them, some guides do more work than a step does.
    """
    guide, batch = run.problem.guide, run.batch
    values: dict[str, list[Tensor]] = {}
    log_q: dict[str, list[Tensor]] = {}
    fns: dict[str, Any] = {}
    with torch.random.fork_rng(), torch.enable_grad(), poutine.block():
        for _ in range(MONITOR_DRAWS):
            trace = poutine.trace(guide).get_trace(*batch.args, **batch.kwargs)
            for name, site in latents(trace).items():
                if site["fn"].has_rsample and not is_point_mass(site["fn"]):
                    fns[name] = site["fn"]
                    values.setdefault(name, []).append(site["value"].detach())
                    # At once: a flow has the inverse of its last draw only.
                    log_q.setdefault(name, []).append(site["fn"].log_prob(site["value"]).sum().detach())
    drawn = {name: torch.stack(found) for name, found in values.items()}
    return {n: _Draws(v, torch.stack(log_q[n]), free_coordinates(v, fns[n])) for n, v in drawn.items()}


def _log_volume(values: Tensor) -> float:
    """log of the volume of all numbers of the dtype, over the coordinates of one draw."""
    return values[0].numel() * (log(2.0) + log(torch.finfo(values.dtype).max))


def _range(values: Tensor) -> Tensor:
    return values.amax(0) - values.amin(0)
