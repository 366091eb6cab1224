"""The two ends of the annealing path: q and the joint density, in packed unconstrained space."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from guides import Guide, Prior
from guides.latents import Latents

from ..programs.draws import draw_all
from .blocks import has_rows, row_blocks

__all__ = ["AnnealingPath", "annealing_paths"]


class AnnealingPath(NamedTuple):
    """The two ends for one block of data."""

    latents: Latents
    rows: Tensor | None
    """Index of the block's rows; None for all the data."""
    start: Callable[[int], Tensor]
    """K draws of q, shape (K, N, dim), or (K, dim) for global latents."""
    ends: Callable[[Tensor], tuple[Tensor, Tensor]]
    """log q(h) and log p(x, h), each of shape (K, N) or (K,)."""


def annealing_paths(model: Callable[..., Any], guide: Callable[..., Any], args: tuple[Any, ...]) -> Iterator[AnnealingPath]:
    """One path for each block of data if every latent lies inside the data plate, else a single one.

    Raises:
        TypeError: if q's density at any h is not known: neither a guide of this suite with a λ nor the prior.
        ValueError: if a latent is discrete.
    """
    if not isinstance(guide, (Guide, Prior)):
        raise TypeError(
            f"ais needs the density of q at any h, which {type(guide).__name__} does not give: pass a guide of this suite "
            "with a λ, or guides.Prior(model)."
        )
    latents = guide.latents if isinstance(guide, Guide) else _latents(model, args)
    assert latents is not None
    if latents.discrete:
        raise ValueError("ais needs gradients in h, but a latent of this model is discrete: use iwae, or sum the latent out.")
    if latents.plate is None or not has_rows(args):
        yield _path(model, guide, latents, args, None)
        return
    for rows, block in row_blocks(args):
        yield _path(model, guide, latents, block, rows)


def _path(model: Any, guide: Any, latents: Latents, block: tuple[Any, ...], rows: Tensor | None) -> AnnealingPath:
    if isinstance(guide, Guide):
        with torch.no_grad():
            q = guide.family(guide.lambdas(block[0], rows))

        def start(chains: int) -> Tensor:
            return q.sample((chains,))

        def ends(h: Tensor) -> tuple[Tensor, Tensor]:
            return q.log_prob(h), latents.log_joint(model, h, block)

    else:

        def start(chains: int) -> Tensor:
            return latents.pack(draw_all(model, guide, block, draws=chains).h)

        def ends(h: Tensor) -> tuple[Tensor, Tensor]:
            prior, likelihood = latents.log_factors(model, h, block)
            return prior, prior + likelihood

    return AnnealingPath(latents, rows, start, ends)


def _latents(model: Callable[..., Any], args: tuple[Any, ...]) -> Latents:
    """Packed per datum if every latent lies inside the data plate, else all together."""
    try:
        return Latents(model, args, {}, plate="data")
    except ValueError:
        return Latents(model, args, {}, plate=None)
