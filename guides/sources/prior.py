"""The prior as a guide: the floor of every comparison."""

from __future__ import annotations

from typing import Any

from pyro import poutine

from .base import ModelGuide

__all__ = ["Prior"]


class Prior(ModelGuide):
    """q(h | x) = p(h), independent of the data. It has no λ to fit; every useful guide has a higher ELBO.

    Args:
        model: any Pyro program in which no latent depends on an observed site.
    """

    def forward(self, *args: Any, **kwargs: Any) -> None:
        """Samples the model's latents from their priors."""
        poutine.block(self.model, hide_fn=_is_observed_or_param)(*args, **kwargs)


def _is_observed_or_param(site: dict[str, Any]) -> bool:
    return site["type"] == "param" or bool(site["is_observed"])
