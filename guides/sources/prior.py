"""The prior as a guide: the floor of every comparison."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pyro import poutine
from pyro.nn import PyroModule

__all__ = ["Prior"]


class Prior(PyroModule):
    """q(h | x) = p(h): ignores the data. Has nothing to learn. Any guide worth its λ has a higher ELBO.

    Args:
        model: any Pyro program. Its latents must not be drawn after, and depending on, observed sites.
    """

    def __init__(self, model: Callable[..., Any]) -> None:
        super().__init__(name=type(self).__name__)
        self._model = (model,)

    @property
    def model(self) -> Any:
        """The model that this guide was built for."""
        return self._model[0]

    def forward(self, *args: Any, **kwargs: Any) -> None:
        """Samples the model's latents from their priors."""
        poutine.block(self.model, hide_fn=_is_observed_or_param)(*args, **kwargs)


def _is_observed_or_param(site: dict[str, Any]) -> bool:
    return site["type"] == "param" or bool(site["is_observed"])
