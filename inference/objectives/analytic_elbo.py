"""The closed-form ELBO as an objective."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from ..elbos.closed_form import analytic_elbo
from ..programs.bound import unwrap
from .base import Loss

__all__ = ["AnalyticELBO"]


@dataclass(frozen=True)
class AnalyticELBO:
    """−ELBO of a Tractable model in closed form: a loss without noise.

    For `models.BinaryVAE` the closed form is a sum over all states (enumeration); with `guides.Posterior` as guide it is
    −log p(x) itself. The guide must have a `q` that the model's `expected_log_likelihood` accepts.

    Estimates: −ELBO; lower is better. Value and gradient are exact; the gradient vanishes at the best λ of the family.
    Harmful: nowhere that the closed form exists.

    Reference: Jordan, Ghahramani, Jaakkola & Saul, "An introduction to variational methods for graphical models" (1999).
    """

    estimates_elbo: ClassVar[bool] = True

    def __call__(self, model: Callable[..., Any], guide: Callable[..., Any], args: Any, kwargs: Any) -> Loss:
        tractable_guide: Any = unwrap(guide)
        (x,) = args
        elbo = analytic_elbo(unwrap(model), tractable_guide.q(x, kwargs.get("index")), x).sum()
        loss = -elbo * (kwargs.get("size", len(x)) / len(x))
        return Loss(loss.detach(), loss)
