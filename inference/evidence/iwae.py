"""The importance-weighted bound."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from guides import Guide, Local

from ..programs.bound import unwrap
from ..programs.draws import draw_chunks
from ..programs.isolation import isolated
from ..programs.validation import as_args, check_count, check_data, check_pair
from .estimate import Evidence, LogMean

__all__ = ["iwae", "per_row", "tables", "with_table"]

ROWS = 100
"""How many data are drawn for at a time."""


def iwae(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    x: Tensor | tuple[Any, ...],
    *,
    draws: int = 5000,
    seed: int = 0,
) -> Evidence:
    r"""log (1/K) Σ_k p(x, h_k) / q(h_k | x), h_k ~ q: a lower bound on log p(x) in expectation, tight as K grows.

    With K = 1 it is the ELBO. Streamed over draws and, where each datum has a λ of its own, over blocks of data, so that
    memory does not grow with K or N.

    Args:
        model, guide: as for `inference.elbo`.
        x: the data, or a tuple of the model's arguments.
        draws: K.
        seed: fixes the draws.

    Returns:
        Per datum where every latent lies inside the data plate, else one value for all data.

    Raises:
        TypeError, ValueError: for bad input; for a point mass as q, which has no weights.

    Reference: Burda, Grosse & Salakhutdinov, "Importance weighted autoencoders" (2016).
    """
    args = as_args(x)
    check_count(draws=draws)
    check_data(model, args)
    values = []
    with isolated(seed), torch.no_grad():
        check_pair(model, guide, args, {})
        for block, proposal in tables(guide, args):
            mean = LogMean(draws)
            for draw in draw_chunks(model, proposal, block, draws=draws):
                weights = draw.log_likelihood + draw.log_prior - draw.log_q
                if (weights == -torch.inf).all():
                    raise ValueError(
                        "iwae: q is a point mass, without a density, so there are no weights; use another family."
                    )
                mean.add(weights)
            values.append(mean.result())
    if len(values) == 1:
        return values[0]
    value, se, ess, khat = (torch.cat([getattr(v, name) for v in values]) for name in ("value", "se", "ess", "khat"))
    return Evidence(value, se, ess, draws, "lower", khat)


def tables(guide: Callable[..., Any], args: tuple[Any, ...]) -> Iterator[tuple[tuple[Any, ...], Callable[..., Any]]]:
    """Blocks of data, each with a guide for these rows alone: a local guide's λ are looked up or computed once for all."""
    guide = unwrap(guide)
    if not (isinstance(guide, Guide) and guide.local and per_row(args)):
        yield args, guide
        return
    for rows in torch.arange(len(args[0]), device=args[0].device).split(ROWS):
        block = tuple(value[rows] for value in args)
        lam = guide.lambdas(block[0], rows)
        yield block, with_table(guide, lam, block)


def per_row(args: tuple[Any, ...]) -> bool:
    """Whether all arguments are tensors with one row for each datum, so that they can be cut into blocks."""
    return all(isinstance(value, Tensor) and value.dim() > 0 and len(value) == len(args[0]) for value in args)


def with_table(guide: Guide, lam: Tensor, block: tuple[Any, ...]) -> Local:
    """A `Local` guide of the same family for these rows, with the given λ."""
    local = Local(guide.model, guide.family, plate=guide.plate)
    local.setup(*block)
    local.table.data = lam.detach().clone()
    return local
