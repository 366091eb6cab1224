"""A loss that has stopped falling, as far as its noise lets one tell."""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt

from scipy.stats import t as student
from torch import Tensor

from ..programs.arguments import check_fields
from .base import Rule, Running, Stop, Watch

__all__ = ["Plateau"]

GROWTH = 1.5
"""Ratio of the steps at one look to those at the look before. The number of looks, over which the false alarms are spread,
then grows with the logarithm of the steps only."""
BATCH_COUNTS = (20, 10)
"""Numbers of batches into which a window is cut to estimate its noise. The second merges the first in pairs."""


@dataclass(frozen=True)
class Plateau(Rule):
    r"""Ends a fit when the loss has fallen by less than `tolerance` in the later half of its steps, beyond chance.

    The rule looks at n = least, 1.5 least, 1.5² least, … steps. At the j-th look, j = 1, 2, …, the window of the last n / 2
    losses is cut into two halves. Twice the difference of their means estimates f, the fall in the window. Its standard error
    s is the larger of two, from the means of 20 and of 10 batches, since merging batches exposes autocorrelation. The fit
    ends if the upper confidence limit

        f + s t_{1 − α_j} < tolerance,      α_j = alarm / (j (j + 1)).

    If the loss is falling by `tolerance` in every window, the probability that the rule ends the fit at any look is at most
    Σ_j α_j = `alarm`. At a true plateau it ends the fit as soon as there are enough losses to show it. Patience rules, which
    count the steps since the last minimum, lack this guarantee: noise alone makes new minima, or prevents them.

    The rule uses the loss alone: it is cheap, and serves any guide and model. `Converged` also estimates the distance of λ.

    Args:
        tolerance: fall of the loss in a window, in nats; per datum if every latent lies in the data plate.
        alarm: bound on the probability of a false alarm in the whole fit.
        least: steps before the first look.

    Reference: batch means as in Flegal, Haran & Jones, "Markov chain Monte Carlo: can we trust the third significant figure?"
    (2008); α is spread over the looks by Bonferroni's inequality.
    """

    tolerance: float = 0.1
    alarm: float = 0.05
    least: int = 1000

    def __post_init__(self) -> None:
        check_fields(self)
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
        limit = fall + error * quantile
        if limit >= self.rule.tolerance:
            return None
        window = len(losses) - len(losses) // 2
        return Stop(self.rule, f"the loss fell by at most {limit:.2g} nats in the last {window} steps", converged=True)


def _fall(window: Tensor) -> tuple[float, float, int]:
    """The fall in a window, its standard error, and the degrees of freedom of that error."""
    found: tuple[float, float, int] | None = None
    for count in BATCH_COUNTS:
        means = window[len(window) % count :].reshape(2, count // 2, -1).mean(2)
        fall = 2 * float(means[0].mean() - means[1].mean())
        error = 2 * sqrt(2 * float(means.var(1).mean()) / (count // 2))
        if found is None or error > found[1]:
            found = (fall, error, count - 2)
    assert found is not None
    return found
