"""The closed-form ELBO as what a fit climbs."""

from __future__ import annotations

from typing import Any

from pyro.infer import ELBO
from torch import Tensor

from .analytic import analytic_elbo

__all__ = ["AnalyticELBO"]


class AnalyticELBO(ELBO):
    """−ELBO of a Tractable model in closed form: a loss without noise, for ``fit(..., objective=AnalyticELBO())``.

    For `models.BinaryVAE` the closed form is a sum over all states (enumeration); with `guides.Posterior` as guide it is
    −log p(x) itself. The guide must have a `q` that the model's `expected_log_likelihood` takes.
    """

    def differentiable_loss(
        self, model: Any, guide: Any, x: Tensor, index: Tensor | None = None, size: int | None = None
    ) -> Tensor:
        """−ELBO of the whole data, in nats, shape ()."""
        elbo = analytic_elbo(model, guide.q(x, index), x).sum()
        return -elbo if size is None else -elbo * (size / len(x))

    def _get_trace(self, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError(f"{type(self).__name__} is not an estimate from traces of single draws.")

    def loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> float:
        """The loss as a number."""
        return float(self.differentiable_loss(model, guide, *args, **kwargs).detach())

    def loss_and_grads(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> float:
        """The loss as a number; its gradient is added to the parameters' grad."""
        loss = self.differentiable_loss(model, guide, *args, **kwargs)
        loss.backward()
        return float(loss.detach())
