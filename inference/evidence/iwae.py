"""The importance-weighted bound."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from pyro.infer.autoguide import AutoGuide
from torch import Tensor

from guides.latents import check_supports

from ..programs.arguments import checked
from ..programs.bound import unwrap
from ..programs.draws import draw_chunks
from ..programs.validation import as_args, check_count, check_data
from .blocks import guide_blocks
from .estimate import Evidence, LogMean
from .whole_pair import whole_pair

__all__ = ["iwae"]


@checked
def iwae(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    x: Tensor | tuple[Any, ...],
    *,
    draws: int = 5000,
    seed: int = 0,
) -> Evidence:
    r"""log (1/K) Σ_k p(x, h_k) / q(h_k | x), h_k ~ q: a lower bound on log p(x) in expectation, tight as K grows.

    With K = 1 it is the ELBO. It streams over draws and, if each datum has its own λ, over blocks of data, so memory grows
    with neither K nor N.

    Args:
        model, guide: as for `inference.elbo`.
        x: the data, or a tuple of the model's arguments.
        draws: K.
        seed: fixes the draws.

    Returns:
        One value per datum if every site of model and guide lies inside the data plate, else one value for all data.

    Raises:
        TypeError, ValueError: for bad input; for a point mass as q, which has no importance weights; for an autoguide of a
            model in which the support of a latent depends on another one.

    Reference: Burda, Grosse & Salakhutdinov, "Importance weighted autoencoders" (2016).
    """
    args = as_args(x)
    check_count(draws=draws)
    check_data(model, args)
    blocks = []
    with whole_pair(model, guide, args, seed=seed, enumerated=True), torch.no_grad():
        if isinstance(unwrap(guide), AutoGuide):
            check_supports(model, *args)
        for block, proposal in guide_blocks(model, guide, args):
            mean = LogMean(draws)
            for chunk in draw_chunks(model, proposal, block, draws=draws):
                log_weights = chunk.log_likelihood + chunk.log_prior - chunk.log_q
                if (chunk.log_q == torch.inf).all():
                    raise ValueError(
                        "iwae: q is a point mass, without a density, so there are no weights; use another family."
                    )
                mean.add(log_weights)
            blocks.append(mean.result())
    return Evidence.joined(blocks).checked("iwae")
