"""Data that a mask hides, such as NaN in place of what is missing."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor
from torch.distributions import transform_to

__all__ = ["fill_hidden_data", "hidden_entries"]


def fill_hidden_data(trace: poutine.Trace) -> None:
    """Replaces entries of the data that are not finite, and that a mask hides, by values within the support.

    A mask sets the log density there to zero, but the gradient of a hidden NaN would still be NaN, as zero times NaN is. An
    entry that no mask hides is left as it is. Sites are replaced in the trace; the model has seen its own data.
    """
    for name, site in trace.nodes.items():
        if site["type"] != "sample" or not site["is_observed"] or not isinstance(site["value"], Tensor):
            continue
        if site["value"].is_floating_point() and (hidden := hidden_entries(site)) is not None:
            fill = torch.where(hidden & ~site["value"].isfinite(), _feasible(site), site["value"])
            trace.nodes[name] = {**site, "value": fill}


def hidden_entries(site: dict[str, Any]) -> Tensor | None:
    """Which entries of a site's value are hidden by `poutine.mask` or the mask of its distribution: None without a mask."""
    hidden = []
    fn, value = site["fn"], site["value"]
    if site["mask"] is not None:
        hidden.append(_hidden(site["mask"], fn, value))
    while isinstance(fn, dist.Independent | dist.ExpandedDistribution | dist.MaskedDistribution):
        if isinstance(fn, dist.MaskedDistribution):
            hidden.append(_hidden(fn._mask, fn, value))
        fn = fn.base_dist
    return torch.stack(torch.broadcast_tensors(*hidden)).any(0) if hidden else None


def _hidden(mask: Tensor | bool, fn: Any, value: Tensor) -> Tensor:
    """Entries outside a mask over the batch shape of `fn`, in the shape of the value."""
    outside = ~torch.as_tensor(mask, dtype=torch.bool, device=value.device)
    return outside[(..., *(None,) * len(fn.event_shape))].expand(value.shape)


def _feasible(site: dict[str, Any]) -> Tensor:
    """A point of the support, in the shape of the value."""
    zero = torch.zeros_like(site["value"])
    try:
        with torch.no_grad():
            point: Tensor = transform_to(site["fn"].support)(zero)
    except (NotImplementedError, ValueError, RuntimeError):
        return zero
    return point if point.shape == zero.shape else zero
