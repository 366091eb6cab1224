"""The closed-form ELBO as an objective."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from guides import Posterior
from models import LocalModel, RegressionModel, Tractable

from ..elbos.closed_form import analytic_terms
from ..programs.bound import unwrap
from .base import Loss

__all__ = ["AnalyticELBO"]


@dataclass(frozen=True)
class AnalyticELBO:
    """−ELBO of a Tractable model in closed form: a loss without noise.

    For `models.BinaryVAE` the closed form is a sum over all states (enumeration); with `guides.Posterior` as guide it is
    −log p(x) itself. The guide must have a `q` that the model's `expected_log_likelihood` accepts.

    Estimates: −ELBO; lower is better. Value and gradient are exact; the gradient vanishes at the best λ of the family. On a
    minibatch they are those of its rows, scaled up to all the data; a KL that all data share is counted once.
    Harmful: nowhere that the closed form exists.

    Reference: Jordan, Ghahramani, Jaakkola & Saul, "An introduction to variational methods for graphical models" (1999).
    """

    estimates_elbo: ClassVar[bool] = True

    def __call__(self, model: Callable[..., Any], guide: Callable[..., Any], args: Any, kwargs: Any) -> Loss:
        own_model: Any = unwrap(model)
        own_guide: Any = unwrap(guide)
        index, x = kwargs.get("index"), self._data(own_model, own_guide, args, kwargs)
        try:
            reconstruction, complexity = analytic_terms(own_model, own_guide.q(x, index), x)
        except TypeError as error:
            raise self._refused(str(error)) from error
        scale = (kwargs.get("size") or len(x)) / len(x)
        loss = (
            complexity.sum() * scale if isinstance(own_model, LocalModel) else complexity.sum()
        ) - reconstruction.sum() * scale
        return Loss(loss.detach(), loss)

    def _data(self, model: Any, guide: Any, args: Any, kwargs: Any) -> Tensor:
        """The rows x of the call. Raises a ValueError unless the pair has closed forms for them."""
        name = type(model).__name__
        if not isinstance(model, Tractable):
            raise self._refused(f"{name} has no closed forms (models.Tractable)")
        if not callable(getattr(guide, "q", None)):
            raise self._refused(f"the guide {type(guide).__name__} has no method q that returns q(h | x)")
        if len(args) != 1:
            raise self._refused(f"the closed forms of {name} take x alone, but there are {len(args)} arguments")
        if kwargs.get("index") is not None and isinstance(model, RegressionModel):
            raise self._refused(f"the closed form of {name} needs the rows of all the data, not of a minibatch")
        if kwargs.get("index") is not None and isinstance(guide, Posterior) and not isinstance(model, LocalModel):
            raise self._refused("the posterior of a global latent given a minibatch is not that given all the data")
        x: Tensor = args[0]
        return x

    def _refused(self, why: str) -> ValueError:
        return ValueError(f"AnalyticELBO does not apply, since {why.rstrip('.')}: use TraceELBO or StickingTheLanding.")
