"""Convergence of the averaged iterates, at ever smaller learning rates."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from math import log2, nan, sqrt
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from .base import Estimate, Rule, Running, Stop, Watch

__all__ = ["Converged"]

EVERY = 8
"""Steps from one iterate that is looked at to the next."""
BATCHES = 64
"""Batches that the iterates of one rate are kept in, at most: then each two become one."""
FIRST = 1024
"""Steps of a first window that are enough, where they are stationary."""
PATIENCE = 8
"""A rate is left after so many times the steps that its window needs, if the loss does not fall."""
MERGED = (1, 2, 4, 8)
"""Batches that are put together to see how much their average varies."""


@dataclass(frozen=True)
class Converged(Rule):
    r"""Ends a fit when the average of its iterates is within `tolerance` of the best λ; halves the rate until it is.

    At a constant rate γ the iterates of a stochastic optimiser become stationary around a point that is off the optimum by
    O(γ^κ). So, for each rate:

    1. Iterates are averaged in batches. Of the windows "all", "the last three quarters" and "the last half" of the
       batches, the longest with R̂ ≤ `rhat` between its halves is taken: the part that is stationary.
    2. It goes on until the window is twice as long as was needed at the rate before, since it takes twice as long to forget
       a start; and until the Monte Carlo error of its average λ̄_γ is below tolerance / 2: an expected KL V_γ from the spread
       of the batches, the largest of four, with batches as they are and merged by 2, 4 and 8, since merging exposes
       correlation between them. To go to the next rate, though not to end, it is enough that the loss has stopped falling
       where the last halving has moved λ̄ by more than noise does, and at the first rate: the bias is large then, and need
       not be known well. After many more steps it is always enough, for bursts of noise at too high a rate would go on for
       ever.
    3. The next rate, γ / 2, starts from λ̄_γ, or from the last iterate if its loss is lower by two standard errors.
    4. D = KL(λ̄_{γ/2}, λ̄_γ), less the noise V of both, is the progress of the last halving, and what noise leaves of it is
       known to √(2 / r) of both V, if they are spread over r directions. What is left is D, plus that error, by (2^κ − 1)²,
       with κ = 1, or from two such D where they are above their noise. The fit ends when that plus V is below tolerance.

    All of these are measured in q, not in λ: KL ≈ ½ δᵀ F δ with Fisher's information F from score draws
    (`Running.scores`). It needs no mean field and no closed form, is the same under every parametrisation of the family,
    adds up over blocks of latents, and is half the symmetrised KL to second order, which near the tolerance is all of it.
    R̂ pools between- and within-variance in that metric.

    Args:
        tolerance: of KL(q_λ ‖ q_λ*) in nats; per datum where every latent lies in the data plate.
        rhat: bound on R̂ for a window to count as stationary.
        most: steps at which to give up.

    Reference: Welandawe, Andersen, Vehtari & Huggins, "A framework for improving the reliability of black-box variational
    inference" (2022/2024), algorithms 1–3; Dhaka et al., "Robust, accurate stochastic variational inference" (2020).
    """

    sets_rate: ClassVar[bool] = True

    tolerance: float = 0.005
    rhat: float = 1.1
    most: int = 100_000

    def __post_init__(self) -> None:
        if not self.tolerance > 0:
            raise ValueError(f"Converged: tolerance must be positive, but is {self.tolerance}.")
        if not self.rhat > 1:
            raise ValueError(f"Converged: rhat must be above 1, but is {self.rhat}.")
        if self.most < 1:
            raise ValueError(f"Converged: most must be at least 1, but is {self.most}.")

    def begin(self, run: Running) -> Watch:
        return _Watch(self)


class _Window(NamedTuple):
    """The stationary part of one learning rate's iterates."""

    average: Tensor
    steps: int
    cost: float
    """V: the expected KL from the noise of the average."""
    fine: bool
    """Whether that is small enough for an end."""
    spread: float
    """r: over how many directions the noise is spread, at most the number of batches."""


class _Watch(Watch):
    def __init__(self, rule: Converged) -> None:
        self.rule = rule
        self.due = EVERY
        self.begun = 0
        self.need = 0
        self.iterates = _Batches()
        self.metric: Tensor | None = None
        self.rates: list[_Window] = []
        self.progress: list[float] = []
        self.distance = nan
        self.converged = False

    def look(self, run: Running) -> Stop | None:
        self.due += EVERY
        point = run.iterate()
        if self.iterates.dim not in (None, len(point)):  # a step has met a parameter for the first time
            self.iterates, self.rates, self.progress = _Batches(), [], []
        if self.iterates.add(point):
            if len(self.iterates.means) == BATCHES // 2:
                self.metric = run.scores()
            if self._judge(run):
                self.converged = True
                reason = (
                    f"KL to the best is an estimated {self.distance:.2g} nats, by averages at {len(self.rates)} rates down to "
                    f"{run.rate:.2g}"
                )
                return Stop(self.rule, reason, converged=True)
        if run.steps >= self.rule.most:
            return Stop(self.rule, f"gave up after {run.steps} steps", converged=False)
        return None

    def close(self, run: Running) -> Estimate:
        if self.converged:
            average: Tensor | None = self.rates[-1].average
        else:
            average = self.iterates.last_half()
        return Estimate(self.distance, average is not None and _take_better(run, average))

    def _judge(self, run: Running) -> bool:
        """Whether the fit may end. If only this rate is done with, goes to the next."""
        window = self._window(run)
        if window is None:
            return False
        here = run.iterate()
        run.move(window.average)
        self.metric = run.scores()
        run.move(here)
        if (window := self._window(run)) is None:
            return False
        if self.rates:
            change, noise = self._change(window, run)
            self.progress.append(max(0.0, change - noise))
            error = noise * sqrt(2 / min(window.spread, self.rates[-1].spread))
        self.rates.append(window)
        self.need = 2 * min(window.steps, max(self.need, FIRST))
        if self.progress:
            self.distance = (self.progress[-1] + error) / (2 ** self._order() - 1) ** 2 + window.cost
            if window.fine and self.distance < self.rule.tolerance:
                return True
        _take_better(run, window.average)
        run.rate /= 2
        self.iterates, self.begun = _Batches(), run.steps
        return False

    def _window(self, run: Running) -> _Window | None:
        """The longest stationary window, if it is good enough."""
        assert self.metric is not None
        batches = torch.stack(self.iterates.means)
        for length in (len(batches), len(batches) * 3 // 4 // 4 * 4, len(batches) // 2 // 4 * 4):
            part = batches[len(batches) - length :]
            average = part.mean(0)
            along = (part - average) @ self.metric.T
            stationary = _rhat(along) <= self.rule.rhat
            if stationary:
                break
        steps = length * self.iterates.length * EVERY
        cost = max(_cost(along, merged) for merged in MERGED) / run.data_count
        fine = cost <= self.rule.tolerance / 2
        window = _Window(average, steps, cost, stationary and fine, _directions(along))
        good = stationary and (fine or (self._biased(window, run) and self._idle(run, 0))) and steps >= self.need
        return window if good or self._idle(run, PATIENCE * max(FIRST, self.need)) else None

    def _change(self, window: _Window, run: Running) -> tuple[float, float]:
        """KL between the averages of this rate and the last, and the part of it that noise has on average."""
        assert self.metric is not None
        last = self.rates[-1]
        return 0.5 * float(
            (self.metric @ (window.average - last.average)).square().mean()
        ) / run.data_count, window.cost + last.cost

    def _biased(self, window: _Window, run: Running) -> bool:
        """Whether more is to be had from a lower rate than from a longer window, as far as is known."""
        if not self.rates:
            return True
        change, noise = self._change(window, run)
        return change > 2 * noise

    def _idle(self, run: Running, patience: int) -> bool:
        """Whether so many losses at this rate, or more, have not fallen any further."""
        losses = run.losses[self.begun :]
        early, late = losses.chunk(2) if len(losses) > 1 else (losses, losses)
        return len(losses) >= patience and bool(late.median() >= early.median())

    def _order(self) -> float:
        """κ, by which the bias falls with the rate: from the last two steps of progress where they are clear of noise."""
        if len(self.progress) < 2:
            return 1.0
        noise = [one.cost + two.cost for one, two in pairwise(self.rates[-3:])]
        clear = all(d > 2 * n for d, n in zip(self.progress[-2:], noise, strict=True))
        return min(1.0, max(0.5, 0.5 * log2(self.progress[-2] / self.progress[-1]))) if clear else 1.0


class _Batches:
    """Iterates averaged in at most `BATCHES` batches of equal length."""

    def __init__(self) -> None:
        self.means: list[Tensor] = []
        self.length = 1
        self.dim: int | None = None
        self._sum: Tensor | None = None
        self._count = 0

    def add(self, point: Tensor) -> bool:
        """Takes an iterate. Returns whether it is time to look at the batches: eight times before their length doubles."""
        self.dim = len(point)
        self._sum = point if self._sum is None else self._sum + point
        self._count += 1
        if self._count < self.length:
            return False
        self.means.append(self._sum / self._count)
        self._sum, self._count = None, 0
        if len(self.means) == BATCHES:
            self.means = [(a + b) / 2 for a, b in zip(self.means[::2], self.means[1::2], strict=True)]
            self.length *= 2
        return len(self.means) >= BATCHES // 2 and len(self.means) % (BATCHES // 16) == 0

    def last_half(self) -> Tensor | None:
        """The average of the later half of the batches, or None."""
        return torch.stack(self.means[len(self.means) // 2 :]).mean(0) if self.means else None


def _rhat(along: Tensor) -> float:
    """R̂ between the halves of a window, pooled over the score draws; `along` has shape (batches, K)."""
    halves = along.reshape(2, -1, along.shape[1])
    within = float(halves.var(1).mean())
    between = float(halves.mean(1).var(0).mean())
    count = halves.shape[1]
    return sqrt((count - 1) / count + between / within) if within else 1.0


def _cost(along: Tensor, merged: int) -> float:
    """V: the expected KL of the average from its own mean, by batches merged in groups."""
    groups = along[len(along) % merged :].reshape(len(along) // merged, merged, -1).mean(1)
    return 0.5 * float(groups.var(0).mean()) / len(groups)


def _directions(along: Tensor) -> float:
    """(Σ v)² / Σ v² of the variances v of the batches along the axes that their scatter has."""
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
