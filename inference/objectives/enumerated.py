"""The ELBO with the discrete latents summed out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from pyro.infer import TraceEnum_ELBO, config_enumerate

from ..programs.traced_pairs import Program, structure
from .base import FromDraws, Loss

__all__ = ["Enumerated"]


@dataclass(frozen=True)
class Enumerated(FromDraws):
    """−ELBO with every finite discrete latent summed out: over q where the guide draws it, else over the model's prior.

    A latent that the guide leaves out is marginalised exactly, which also removes its part of the gap; `fit` requires the
    model to mark such a site by ``infer={"enumerate": "parallel"}``. Continuous latents are drawn, as in TraceELBO.

    Estimates: −ELBO; lower is better. Value and gradient are unbiased. If all latents are discrete they are exact, and the
    gradient is zero at the exact posterior. Harmful: the cost grows with the number of combinations of values within one
    datum. An engine cannot capture it as a graph, because Pyro's tensor contraction branches on numbers.

    Args:
        draws: number K of draws of the continuous latents, averaged.

    Reference: Obermeyer, Bingham, Jankowiak et al., "Tensor variable elimination for plated factor graphs" (2019).
    """

    estimates_elbo: ClassVar[bool] = True
    draws: int = 1

    def __call__(self, model: Program, guide: Program, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Loss:
        known = structure(model, guide, args, kwargs)
        if not known.enumerable:
            raise ValueError(
                "Enumerated sums out discrete latents with finitely many values, but this pair has none: use TraceELBO or "
                "StickingTheLanding, or ScoreFunction for unbounded discrete latents."
            )
        elbo = TraceEnum_ELBO(num_particles=self.draws, max_plate_nesting=known.nesting)
        loss = elbo.differentiable_loss(config_enumerate(model), config_enumerate(guide), *args, **kwargs)
        return Loss(loss.detach(), loss)
