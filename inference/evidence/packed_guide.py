"""A guide as a distribution over packed latents: for each datum where the data are independent, else over all together."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from pyro import poutine
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor

from guides import Guide
from guides.latents import Latents

from ..programs.bound import unwrap
from .joint_family import JointFamily
from .packed_model import PackedModel

__all__ = ["PackedGuide", "data_are_independent", "is_cut_by_rows", "packed_guide"]


class PackedGuide(NamedTuple):
    """q = family(lam) over packed latents."""

    latents: Latents
    """Packed for each datum, or all together."""
    family: Callable[[Tensor], Any]
    """λ ↦ q."""
    lam: Tensor
    """λ of the guide, differentiable in its parameters: shape (N, size) if the data are independent, else one vector."""

    @property
    def per_datum(self) -> bool:
        """Whether each datum has its own q and its own weight."""
        return self.latents.plate is not None


def packed_guide(model: Callable[..., Any], guide: Guide, args: tuple[Any, ...]) -> PackedGuide:
    """The guide, which is set up, over packed latents. Call it inside `isolated`."""
    assert guide.latents is not None
    if not guide.local:
        return PackedGuide(guide.latents, guide.family, guide.lambdas(args[0] if args else None))  # type: ignore[arg-type]
    if data_are_independent(model, guide, args):
        return PackedGuide(guide.latents, guide.family, guide.lambdas(args[0]))
    family = JointFamily(guide, args)
    return PackedGuide(family.latents, family, family.start)


def data_are_independent(model: Callable[..., Any], guide: Callable[..., Any], args: tuple[Any, ...]) -> bool:
    """Whether every sample site of model and guide lies inside the data plate, so that each datum has its own weight."""
    plate = getattr(unwrap(guide), "plate", "data")
    with torch.random.fork_rng(), torch.no_grad(), poutine.block():
        drawn = poutine.trace(guide).get_trace(*args)
        scored = poutine.trace(poutine.replay(model, trace=drawn)).get_trace(*args)
    return all(
        any(frame.name == plate and frame.vectorized for frame in site["cond_indep_stack"])
        for trace in (drawn, scored)
        for site in prune_subsample_sites(trace).nodes.values()
        if site["type"] == "sample" and not site["infer"].get("_deterministic")
    )


def is_cut_by_rows(model: Callable[..., Any], latents: Latents, args: tuple[Any, ...], first: int) -> bool:
    """Whether the model gives the first rows of the data, alone, the densities that they have among all data.

    A model that looks something up for each row, or that combines rows, does not. Call it inside `isolated`.

    Args:
        model: any Pyro program.
        latents: its latents, packed for each datum.
        args: the data.
        first: number of rows that are evaluated alone.
    """
    if not args or any(not isinstance(value, Tensor) or value.dim() == 0 for value in args):
        return False
    rows = len(args[0])
    if latents.plate_sizes.get(latents.plate or "") != rows or any(len(value) != rows for value in args):
        return False
    h = torch.zeros(1, rows, latents.dim, dtype=latents.dtype, device=latents.device)
    if not latents.discrete:
        h = torch.randn_like(h)
    with torch.no_grad():
        whole = PackedModel(model, latents, args).log_joint(h)
        for block in (slice(first), slice(rows - first, None)):
            try:
                part = PackedModel(model, latents, tuple(value[block] for value in args)).log_joint(h[:, block])
            except (RuntimeError, ValueError, TypeError, IndexError):
                return False
            if part.shape != whole[:, block].shape or not torch.allclose(part, whole[:, block], rtol=1e-4, equal_nan=True):
                return False
    return True
