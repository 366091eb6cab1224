"""The objective with the least noise that a pair allows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from pyro import poutine

from ..engine.minibatches import Batch
from ..objectives import Objective, StickingTheLanding, TraceELBO
from ..programs.traced_pairs import is_point_mass, latents
from .fisher import data_count

__all__ = ["lowest_variance_objective"]

DRAWS = 8
DATA = 64
"""Data with latents of their own that average as much noise as further draws would."""


def lowest_variance_objective(guide: Callable[..., Any], batch: Batch) -> Objective:
    """`StickingTheLanding` if every draw of the guide is reparameterised and has a density, else `TraceELBO`.

    Near a posterior that the family can reach its gradient has no noise, so that the iterates need no averaging. Its weakness,
    noise far from the posterior, costs a fit that is to go all the way some steps at the start. Eight draws a step where
    latents are shared by all data: on small models they cost little more than one. Fewer where each datum has its own.
    """
    with torch.random.fork_rng(), torch.no_grad(), poutine.block():
        sites = list(latents(poutine.trace(guide).get_trace(*batch.args, **batch.kwargs)).values())
    drawn = [site["fn"] for site in sites if not is_point_mass(site["fn"]) and type(site["fn"]).__name__ != "_Subsample"]
    if data_count(guide, batch) > 1:
        data = len(batch.args[0]) if batch.kwargs else data_count(guide, batch)
        draws = max(1, min(DRAWS, DATA // data))
    else:
        draws = DRAWS
    if drawn and all(fn.has_rsample for fn in drawn):
        return StickingTheLanding(draws)
    return TraceELBO(draws)
