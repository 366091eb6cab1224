"""A lower and an upper bound that sandwich log p(x) on simulated data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from guides import Prior
from models import Model

from ..programs.arguments import checked
from ..programs.validation import check_count
from .ais import ais, ais_reverse
from .estimate import Evidence

__all__ = ["Sandwich", "bidirectional"]


@dataclass(frozen=True)
class Sandwich:
    """Bounds on log p(x) for data x simulated from the model."""

    x: Tensor
    lower: Evidence
    upper: Evidence

    @property
    def width(self) -> Tensor:
        """upper − lower, in nats: in expectation at least the error of either bound. Same shape as the bounds."""
        return self.upper.value - self.lower.value


@checked
def bidirectional(model: Model, n: int, *, guide: Callable[..., Any] | None = None, seed: int = 0, **options: Any) -> Sandwich:
    """Simulates `n` rows from the model and bounds their log p(x) from both sides by annealed importance sampling.

    The error of `ais` on real data is unknown; the width of the sandwich estimates it on simulated data like them.

    Args:
        model: a model of this suite with continuous latents.
        n: rows to simulate.
        guide: the start of the annealing, able to take unseen x; the prior by default.
        seed: fixes the data and all draws.
        options: as for `ais`.

    Raises:
        TypeError, ValueError: for bad input, an improper prior, or a discrete latent.

    Reference: Grosse, Ghahramani & Adams (2015); Wu et al. (2017).
    """
    check_count(n=n)
    h, x = model.simulate(n, seed=seed)
    start = Prior(model) if guide is None else guide
    lower = ais(model, start, x, seed=seed, **options)
    exact = h if isinstance(h, dict) else {"h": h}
    upper = ais_reverse(model, start, x, exact, seed=seed + 1, **options)
    return Sandwich(x, lower, upper)
