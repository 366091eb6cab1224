"""A loss that no longer falls, told from its noise."""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt

from scipy.stats import t as student
from torch import Tensor

from .base import Rule, Running, Stop, Watch

__all__ = ["Plateau"]

GROWTH = 1.5
"""Steps at one look by those at the one before."""
BATCHES = (20, 10)
"""Batches that a window is cut into, to estimate the noise of its halves."""


@dataclass(frozen=True)
class Plateau(Rule):
    r"""Ends a fit when the loss has fallen by less than `tolerance` in the later half of its steps, and that is no accident.

    The looks are at n = least, 1.5 least, 1.5² least, …. At the j-th, j = 1, 2, …, the last n / 2 losses are halved once more:
    twice the fall from the mean of the one to that of the other, f, is the fall in the window, with standard error s from the
    means of 20 and of 10 batches (the larger, since merging exposes autocorrelation). The fit ends if the upper confidence
    limit

        f + s t_{1 − α_j} < tolerance,      α_j = alarm / (j (j + 1)).

    So the probability that it ends at any look, though the loss was still falling by `tolerance` a window at each, is at most
    Σ_j α_j = `alarm`. At a true plateau it ends as soon as there are losses enough to see it, and not by a run of bad luck:
    patience rules count new minima, which noise alone keeps making, or keeps from being made.

    It looks at the loss alone: cheap, for any guide and model. `Converged` is the rule that knows how far λ is.

    Args:
        tolerance: nats that the loss may still fall in a window, per datum where every latent lies in the data plate.
        alarm: bound on the probability of a false alarm, in the whole fit.
        least: steps before the first look.

    Reference: batch means as in Flegal, Haran & Jones, "Markov chain Monte Carlo: can we trust the third significant figure?"
    (2008); α spent over the looks by Bonferroni's inequality.
    """

    tolerance: float = 0.1
    alarm: float = 0.05
    least: int = 1000

    def __post_init__(self) -> None:
        if not self.tolerance > 0:
            raise ValueError(f"Plateau: tolerance must be positive, but is {self.tolerance}.")
        if not 0 < self.alarm < 1:
            raise ValueError(f"Plateau: alarm must be between 0 and 1, but is {self.alarm}.")
        if self.least < 200:
            raise ValueError(f"Plateau: least must be at least 200, but is {self.least}.")

    def begin(self, run: Running) -> Watch:
        return _Watch(self)


class _Watch(Watch):
    def __init__(self, rule: Plateau) -> None:
        self.rule = rule
        self.due = rule.least
        self.looks = 0

    def look(self, run: Running) -> Stop | None:
        self.looks += 1
        self.due = int(GROWTH * self.due)
        losses = run.losses
        fall, error, freedom = _fall(losses[len(losses) // 2 :] / run.data_count)
        quantile = float(student.ppf(1 - self.rule.alarm / (self.looks * (self.looks + 1)), freedom))
        most = fall + error * quantile
        if most >= self.rule.tolerance:
            return None
        window = len(losses) - len(losses) // 2
        return Stop(self.rule, f"the loss fell by at most {most:.2g} nats in the last {window} steps", converged=True)


def _fall(window: Tensor) -> tuple[float, float, int]:
    """The fall in a window, its standard error, and the degrees of freedom of that."""
    found: tuple[float, float, int] | None = None
    for batches in BATCHES:
        means = window[len(window) % batches :].reshape(2, batches // 2, -1).mean(2)
        fall = 2 * float(means[0].mean() - means[1].mean())
        error = 2 * sqrt(2 * float(means.var(1).mean()) / (batches // 2))
        if found is None or error > found[1]:
            found = (fall, error, batches - 2)
    assert found is not None
    return found
