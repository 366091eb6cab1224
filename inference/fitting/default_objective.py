"""The objective of a fit whose rule sets the learning rate."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from pyro import poutine

from ..engine.minibatches import Batch
from ..objectives import Objective, StickingTheLanding, TraceELBO
from ..programs.traced_pairs import is_point_mass
from .fisher import data_count, guide_sites

__all__ = ["lowest_variance_objective"]

MAX_DRAWS = 8
"""Draws per step of latents that all data share: on small models eight cost little more than one."""
MAX_DRAWS_TIMES_ROWS = 64
"""Draws times rows of the batch, if each datum has latents of its own: 64 rows average as much noise as more draws would."""


def lowest_variance_objective(guide: Callable[..., Any], batch: Batch) -> Objective:
    """`StickingTheLanding` if every draw of the guide is reparameterised and has a density, else `TraceELBO`.

    Near a posterior that the family can represent, the gradient of `StickingTheLanding` has no noise, so that the iterates
    need no averaging. It is noisier far from the posterior, which costs a fit that runs to convergence a few steps at the
    start.

    Args:
        guide: a Pyro guide.
        batch: the data, or a minibatch that represents them.
    """
    count = data_count(guide, batch)
    rows = len(batch.args[0]) if "index" in batch.kwargs else count
    draws = MAX_DRAWS if count == 1 else max(1, min(MAX_DRAWS, MAX_DRAWS_TIMES_ROWS // rows))
    with torch.random.fork_rng(), torch.no_grad(), poutine.block():
        sites = guide_sites(guide, batch).values()
    densities = [site["fn"] for site in sites if not is_point_mass(site["fn"])]
    if densities and all(fn.has_rsample for fn in densities):
        return StickingTheLanding(draws)
    return TraceELBO(draws)
