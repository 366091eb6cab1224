"""Convergence of averaged iterates at a sequence of halved learning rates."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from math import log2, nan, sqrt
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from ..programs.arguments import check_fields
from .base import Closing, Rule, Running, Stop, Watch

__all__ = ["Converged"]

INTERVAL = 8
"""Steps between two iterates that are averaged: consecutive ones are so alike that each adds little."""
MAX_BATCHES = 64
"""Batches of iterates that are kept for one rate; at this number they are merged in pairs, so that memory does not grow."""
MAX_FIRST_WINDOW = 1024
"""Steps of the first window that count towards what later rates need, even if it was longer."""
PATIENCE = 8
"""A rate is left after this many times the steps that its window needs, if the loss does not fall."""
MERGE_SIZES = (1, 2, 4, 8)
"""Numbers of batches that are merged to see how much their average varies."""


@dataclass(frozen=True)
class Converged(Rule):
    r"""Ends a fit when the average of its iterates is within `tolerance` of the best λ; halves the learning rate until it is.

    At a constant rate γ the iterates of a stochastic optimiser become stationary around a point at a distance O(γ^κ) from the
    optimum. So, for each rate:

    1. Iterates are averaged in batches. Of three windows (all batches, the last three quarters, the last half), the longest
       with R̂ ≤ `rhat` between its halves is the stationary part.
    2. The rate is kept until this window is long enough and precise enough. Long enough: twice the steps needed at the rate
       before, since at half the rate it takes twice as long to forget the start. Precise enough: the Monte Carlo error of its
       average λ̄_γ is below tolerance / 2. This error is an expected KL, V_γ, from the spread of the batches: the largest of
       four estimates, from batches as they are and merged by 2, 4 and 8, since merging exposes correlation between them.
       An imprecise window suffices to leave a rate (though not to end the fit) if the loss has stopped falling and the bias is
       known to be large: at the first rate, and if the last halving has moved λ̄ by more than noise does. After many more steps
       without a fall of the loss, any window suffices: at too high a rate, bursts of noise could continue forever.
    3. The next rate, γ / 2, starts from λ̄_γ, or from the last iterate if its loss is lower by two standard errors.
    4. The progress of the last halving is D = KL(λ̄_{γ/2}, λ̄_γ) less the noise V of both averages. Its error is √(2 / r) times
       the sum of both V, if they are spread over r directions. The remaining distance is estimated as D plus this error,
       divided by (2^κ − 1)², with κ = 1, or κ from two successive D if both are above their noise. The fit ends when the
       remaining distance plus V is below tolerance.

    All of these are measured in q, not in λ: KL ≈ ½ δᵀ F δ, with the Fisher information F from score draws
    (`Running.scores`). This needs neither a mean field nor a closed form, is the same under every parametrisation of the
    family, and adds up over blocks of latents. To second order, which is all that matters near the tolerance, it is half the
    symmetrised KL. R̂ pools between- and within-variance in this metric.

    Args:
        tolerance: KL(q_λ ‖ q_λ*) to reach, in nats; per datum if every latent lies in the data plate.
        rhat: largest R̂ of a window that counts as stationary.
        most: steps at which to give up.

    Reference: Welandawe, Andersen, Vehtari & Huggins, "A framework for improving the reliability of black-box variational
    inference" (2022/2024), algorithms 1–3; Dhaka et al., "Robust, accurate stochastic variational inference" (2020).
    """

    sets_rate: ClassVar[bool] = True

    tolerance: float = 0.005
    rhat: float = 1.1
    most: int = 100_000

    def __post_init__(self) -> None:
        check_fields(self)
        if not self.tolerance > 0:
            raise ValueError(f"Converged: tolerance must be positive, but is {self.tolerance}.")
        if not self.rhat > 1:
            raise ValueError(f"Converged: rhat must be above 1, but is {self.rhat}.")
        if self.most < 1:
            raise ValueError(f"Converged: most must be at least 1, but is {self.most}.")

    def begin(self, run: Running) -> Watch:
        return _Watch(self)


class _Window(NamedTuple):
    """The stationary part of the iterates at one learning rate."""

    average: Tensor
    steps: int
    noise: float
    """V: the expected KL from the noise of the average, in nats per datum."""
    precise: bool
    """Whether the window is stationary and its noise small enough to end the fit."""
    directions: float
    """r: the number of directions over which the noise is spread, at most the number of batches."""


class _Watch(Watch):
    def __init__(self, rule: Converged) -> None:
        self.rule = rule
        self.due = INTERVAL
        self.rate_began = 0
        self.min_steps = 0
        self.iterates = _BatchMeans()
        self.metric: Tensor | None = None
        self.windows: list[_Window] = []
        self.progress: list[float] = []
        self.distance = nan
        self.converged = False

    def look(self, run: Running) -> Stop | None:
        self.due += INTERVAL
        point = run.iterate()
        if self.iterates.dim not in (None, len(point)):  # a step has met a parameter for the first time
            self.iterates, self.windows, self.progress = _BatchMeans(), [], []
        if self.iterates.add(point):
            if len(self.iterates.means) == MAX_BATCHES // 2:
                self.metric = run.scores()
            if self._finishes(run):
                self.converged = True
                reason = (
                    f"KL to the best is an estimated {self.distance:.2g} nats, from averages at {len(self.windows)} learning "
                    f"rates down to {run.rate:.2g}"
                )
                return Stop(self.rule, reason, converged=True)
        if run.steps >= self.rule.most:
            return Stop(self.rule, f"gave up after {run.steps} steps", converged=False)
        return None

    def close(self, run: Running) -> Closing:
        if self.converged:
            average: Tensor | None = self.windows[-1].average
        else:
            average = self.iterates.last_half()
        return Closing(self.distance, average is not None and _take_better(run, average))

    def _finishes(self, run: Running) -> bool:
        """Whether the fit may end. If this rate has its window but the fit may not end, goes to the next rate."""
        window = self._window(run)
        if window is None:
            return False
        here = run.iterate()
        run.move(window.average)
        self.metric = run.scores()
        run.move(here)
        if (window := self._window(run)) is None:
            return False
        if self.windows:
            change, noise = self._change(window, run)
            self.progress.append(max(0.0, change - noise))
            error = noise * sqrt(2 / min(window.directions, self.windows[-1].directions))
        self.windows.append(window)
        self.min_steps = 2 * min(window.steps, max(self.min_steps, MAX_FIRST_WINDOW))
        if self.progress:
            self.distance = (self.progress[-1] + error) / (2 ** self._order() - 1) ** 2 + window.noise
            if window.precise and self.distance < self.rule.tolerance:
                return True
        _take_better(run, window.average)
        run.rate /= 2
        self.iterates, self.rate_began = _BatchMeans(), run.steps
        return False

    def _window(self, run: Running) -> _Window | None:
        """The longest stationary window; None if the rate is to be kept."""
        assert self.metric is not None
        batches = torch.stack(self.iterates.means)
        for length in (len(batches), len(batches) * 3 // 4 // 4 * 4, len(batches) // 2 // 4 * 4):
            part = batches[len(batches) - length :]
            average = part.mean(0)
            along = (part - average) @ self.metric.T
            stationary = _rhat(along) <= self.rule.rhat
            if stationary:
                break
        steps = length * self.iterates.length * INTERVAL
        noise = max(_noise(along, size) for size in MERGE_SIZES) / run.data_count
        precise = noise <= self.rule.tolerance / 2
        window = _Window(average, steps, noise, stationary and precise, _directions(along))
        enough = precise or (self._biased(window, run) and self._stalled(run, 0))
        if stationary and enough and steps >= self.min_steps:
            return window
        return window if self._stalled(run, PATIENCE * max(MAX_FIRST_WINDOW, self.min_steps)) else None

    def _change(self, window: _Window, run: Running) -> tuple[float, float]:
        """KL between the averages of this rate and the last, and the mean of the part of it that is noise."""
        assert self.metric is not None
        last = self.windows[-1]
        squares = (self.metric @ (window.average - last.average)).square()
        return 0.5 * float(squares.mean()) / run.data_count, window.noise + last.noise

    def _biased(self, window: _Window, run: Running) -> bool:
        """Whether a lower rate promises more than a longer window: the last halving has moved the average beyond noise."""
        if not self.windows:
            return True
        change, noise = self._change(window, run)
        return change > 2 * noise

    def _stalled(self, run: Running, min_losses: int) -> bool:
        """Whether this rate has `min_losses` losses or more, and the median of their later half is no lower than before."""
        losses = run.losses[self.rate_began :]
        early, late = losses.chunk(2) if len(losses) > 1 else (losses, losses)
        return len(losses) >= min_losses and bool(late.median() >= early.median())

    def _order(self) -> float:
        """κ, the order at which the bias falls with the rate: from the last two D if both are above their noise, else 1."""
        if len(self.progress) < 2:
            return 1.0
        noise = [one.noise + two.noise for one, two in pairwise(self.windows[-3:])]
        clear = all(d > 2 * n for d, n in zip(self.progress[-2:], noise, strict=True))
        return min(1.0, max(0.5, 0.5 * log2(self.progress[-2] / self.progress[-1]))) if clear else 1.0


class _BatchMeans:
    """Iterates averaged in fewer than `MAX_BATCHES` batches of equal length."""

    def __init__(self) -> None:
        self.means: list[Tensor] = []
        self.length = 1
        self.dim: int | None = None
        self._sum: Tensor | None = None
        self._count = 0

    def add(self, point: Tensor) -> bool:
        """Adds an iterate. Returns whether to look at the batches: eight times before their length doubles."""
        self.dim = len(point)
        self._sum = point if self._sum is None else self._sum + point
        self._count += 1
        if self._count < self.length:
            return False
        self.means.append(self._sum / self._count)
        self._sum, self._count = None, 0
        if len(self.means) == MAX_BATCHES:
            self.means = [(a + b) / 2 for a, b in zip(self.means[::2], self.means[1::2], strict=True)]
            self.length *= 2
        return len(self.means) >= MAX_BATCHES // 2 and len(self.means) % (MAX_BATCHES // 16) == 0

    def last_half(self) -> Tensor | None:
        """The average of the later half of the batches; None if there are none."""
        return torch.stack(self.means[len(self.means) // 2 :]).mean(0) if self.means else None


def _rhat(along: Tensor) -> float:
    """R̂ between the halves of a window, pooled over the score draws; `along` has shape (batches, K)."""
    halves = along.reshape(2, -1, along.shape[1])
    within = float(halves.var(1).mean())
    between = float(halves.mean(1).var(0).mean())
    count = halves.shape[1]
    return sqrt((count - 1) / count + between / within) if within else 1.0


def _noise(along: Tensor, size: int) -> float:
    """V: the expected KL between the average and its own mean, from batches merged in groups of `size`."""
    groups = along[len(along) % size :].reshape(len(along) // size, size, -1).mean(1)
    return 0.5 * float(groups.var(0).mean()) / len(groups)


def _directions(along: Tensor) -> float:
    """(Σ v)² / Σ v² for the variances v of the batches along their principal axes."""
    centred = along - along.mean(0)
    scatter = centred @ centred.T
    return float(scatter.trace() ** 2 / scatter.square().sum()) if bool(scatter.any()) else 1.0


def _take_better(run: Running, average: Tensor) -> bool:
    """Sets λ to the average, unless the last iterate's loss is lower by two standard errors, with common noise."""
    last, mean = run.losses_at([run.iterate(), average])
    excess = mean - last
    if better := bool(excess.mean() <= 2 * excess.std() / sqrt(len(excess))):
        run.move(average)
    return better
