"""Whether a model's prior is a normalised density."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor

from models import Model

from ..programs.bound import unwrap

__all__ = ["improper_latents"]


def improper_latents(model: Callable[..., Any], guide: Callable[..., Any], args: tuple[Any, ...]) -> list[str]:
    """Names of the latents without a normalised prior: `ImproperUniform`, masked out, or in a model that says so.

    A density that the model adds by `pyro.factor` cannot be told from a likelihood, and counts as one.

    Args:
        model, guide: the pair; the guide gives the latents their values. Run it inside `isolated`.
        args: the model's arguments.
    """
    own = unwrap(model)
    drawn = poutine.trace(guide).get_trace(*args)
    nodes = prune_subsample_sites(poutine.trace(poutine.replay(model, trace=drawn)).get_trace(*args)).nodes
    latents = {name: site for name, site in nodes.items() if site["type"] == "sample" and not site["is_observed"]}
    if isinstance(own, Model) and not own.proper:
        return list(latents)
    return [name for name, site in latents.items() if _switched_off(site["mask"]) or _is_improper(site["fn"])]


def _is_improper(fn: Any) -> bool:
    while fn is not None:
        if isinstance(fn, dist.ImproperUniform) or _switched_off(getattr(fn, "_mask", None)):
            return True
        fn = getattr(fn, "base_dist", None)
    return False


def _switched_off(mask: Any) -> bool:
    """Whether a mask leaves out at least one element."""
    return mask is False or (isinstance(mask, Tensor) and not bool(torch.as_tensor(mask).bool().all()))
