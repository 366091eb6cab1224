"""The two ends of the annealing path: q and the joint density, in packed unconstrained space."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from pyro import poutine
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor

from guides import Guide, Prior
from guides.latents import Latents

from ..programs.draws import draw_all
from .blocks import row_blocks
from .finite import require_density
from .packed_guide import PackedGuide, data_are_independent, packed_guide
from .packed_model import PackedModel

__all__ = ["AnnealingPath", "annealing_paths", "paths_from"]


DISCRETE = "ais needs gradients in h, but a latent of this model is discrete: use iwae, or sum the latent out."


class AnnealingPath(NamedTuple):
    """The two ends for one block of data."""

    latents: Latents
    rows: Tensor | None
    """Index of the block's rows; None for all the data."""
    start: Callable[[int], Tensor]
    """K draws of q, shape (K, N, dim), or (K, dim) if the data are not independent."""
    ends: Callable[[Tensor], tuple[Tensor, Tensor]]
    """log q(h) and log p(x, h), each of shape (K, N) or (K,)."""


def annealing_paths(model: Callable[..., Any], guide: Callable[..., Any], args: tuple[Any, ...]) -> Iterator[AnnealingPath]:
    """One path for each block of data if the data are independent, else a single one. Call it inside `isolated`.

    Raises:
        TypeError: if q's density at any h is not known: neither a guide of this suite with a λ nor the prior.
        ValueError: if a latent is discrete, or the family has no density.
    """
    if isinstance(guide, Prior):
        yield from _from_prior(model, guide, args)
    elif isinstance(guide, Guide):
        with torch.no_grad():
            packed = packed_guide(model, guide, args)
        yield from paths_from(model, packed, args)
    else:
        raise TypeError(
            f"ais needs the density of q at any h, which {type(guide).__name__} does not give: pass a guide of this suite "
            "with a λ, or guides.Prior(model)."
        )


def paths_from(model: Callable[..., Any], packed: PackedGuide, args: tuple[Any, ...]) -> Iterator[AnnealingPath]:
    """One path for each block of data, from q = packed.family(packed.lam)."""
    if packed.latents.discrete:
        raise ValueError(DISCRETE)
    for rows, block in row_blocks(model, packed.latents, args):
        yield _from_q(model, packed, rows, block)


def _from_q(model: Any, packed: PackedGuide, rows: Tensor | None, block: tuple[Any, ...]) -> AnnealingPath:
    q = packed.family(packed.lam.detach() if rows is None else packed.lam.detach()[rows])
    joint = PackedModel(model, packed.latents, block)

    require_density(q, "ais")

    def start(chains: int) -> Tensor:
        h: Tensor = q.sample((chains,))
        return h

    def ends(h: Tensor) -> tuple[Tensor, Tensor]:
        return q.log_prob(h), joint.log_joint(h)

    return AnnealingPath(packed.latents, rows, start, ends)


def _from_prior(model: Any, prior: Prior, args: tuple[Any, ...]) -> Iterator[AnnealingPath]:
    plate = "data" if data_are_independent(model, prior, args) else None
    if _has_discrete(model, args):
        raise ValueError(DISCRETE)
    latents = Latents(model, args, {}, plate=plate)
    for rows, block in row_blocks(model, latents, args):
        joint = PackedModel(model, latents, block)

        def start(chains: int, block: tuple[Any, ...] = block) -> Tensor:
            return latents.pack(draw_all(model, prior, block, draws=chains).h)

        def ends(h: Tensor, joint: PackedModel = joint) -> tuple[Tensor, Tensor]:
            log_prior, likelihood = joint.log_factors(h)
            return log_prior, log_prior + likelihood

        yield AnnealingPath(latents, rows, start, ends)


def _has_discrete(model: Any, args: tuple[Any, ...]) -> bool:
    with torch.random.fork_rng(), torch.no_grad(), poutine.block():
        nodes = prune_subsample_sites(poutine.trace(model).get_trace(*args)).nodes
    return any(s["type"] == "sample" and not s["is_observed"] and s["fn"].support.is_discrete for s in nodes.values())
