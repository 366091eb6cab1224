"""Fisher information of a guide, by draws of its score: the KL, in nats, by which a change of λ moves q."""

from __future__ import annotations

from collections.abc import Callable
from math import ceil, sqrt
from typing import Any

import torch
from pyro import poutine
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from ..engine.minibatches import Batch
from ..programs.traced_pairs import PLATE, Pair, is_point_mass, latents, traced_pairs

__all__ = ["data_count", "guide_sites", "score_draws"]

SCORE_DRAWS = 64
"""Minimum number of scores, whatever the number of data that each is summed over. Along one δ a score is one number, and its
square a χ² with one degree of freedom: the KL is then known to √(2/64), about a sixth."""
MAX_DRAWS_TIMES_ROWS = 2_000
"""Approximate number of draws times rows in one call, which bounds its memory."""
MIN_DRAWS = 4
"""Draws per call even of many rows, so that there are at most 16 calls."""


def score_draws(model: Callable[..., Any], guide: Callable[..., Any], batch: Batch, leaves: list[Tensor]) -> Tensor:
    r"""Vectors s_k with E[(s_k · δ)²] = δᵀ F δ ≈ 2 KL(q_λ ‖ q_{λ+δ}), for a small change δ of all the leaves.

    For the guide, s_k = ∇ log q_λ(h_k) with h_k ~ q_λ held fixed, for any family. Leaves of the model (a decoder) move
    p(x, h): their information is that of data and latents together, Σ ∇ log p_i ∇ log p_iᵀ over the terms of log p, and one
    gradient with random signs gives the sum. A guide that is a point mass has no score; its leaves count as the model's.

    Args:
        model, guide: a Pyro pair.
        batch: the data, or a minibatch that represents them.
        leaves: the tensors that are learned, with p numbers in all.

    Returns:
        Shape (K, p), float64, with K ≥ `SCORE_DRAWS`.
    """
    rows = len(batch.args[0]) if "index" in batch.kwargs else data_count(guide, batch)
    draws = min(SCORE_DRAWS, max(MIN_DRAWS, MAX_DRAWS_TIMES_ROWS // rows))
    call: Any = (model, guide, batch.args, batch.kwargs)
    with torch.random.fork_rng(), torch.enable_grad(), poutine.block():
        hold = any(not is_point_mass(site["fn"]) for site in guide_sites(guide, batch).values())
        scores = []
        for _ in range(ceil(SCORE_DRAWS / draws)):
            for pair in traced_pairs(*call, draws=draws, hold=hold):
                scores += _scores(pair, leaves)
    return torch.stack(scores)


def data_count(guide: Callable[..., Any], batch: Batch) -> int:
    """N if every latent lies in one plate of N data, else 1."""
    with torch.random.fork_rng(), torch.no_grad(), poutine.block():
        sites = [site for site in guide_sites(guide, batch).values() if not is_point_mass(site["fn"])]
    plates = [{frame.name: frame for frame in site["cond_indep_stack"] if frame.vectorized} for site in sites]
    shared = set.intersection(*map(set, plates)) if plates else set()
    if not shared:
        return 1
    frame = plates[0][shared.pop()]
    return int(frame.full_size or frame.size)


def guide_sites(guide: Callable[..., Any], batch: Batch) -> dict[str, Any]:
    """The guide's latents in one call, by name. Draws from torch's generator."""
    trace = poutine.trace(guide).get_trace(*batch.args, **batch.kwargs)
    return {name: site for name, site in latents(trace).items() if not site_is_subsample(site)}


def _scores(pair: Pair, leaves: list[Tensor]) -> list[Tensor]:
    terms = [_term(site, signed=False) for site in latents(pair.guide).values() if not is_point_mass(site["fn"])]
    drawn = [site for site in pair.model.nodes.values() if site["type"] == "sample"]
    terms += [_term(site, signed=True) for site in drawn if site["log_prob"].requires_grad]
    total = sum((_by_draw(term, frame) for term, frame in terms), torch.zeros(()))
    return [_gradient(value, leaves) for value in total.reshape(-1)]


def _term(site: dict[str, Any], *, signed: bool) -> tuple[Tensor, Any]:
    """Log densities of a site, and the frame of the plate of draws if the site is in it.

    They are divided by the root of the minibatch scale, so that their squares add up to the whole data.
    """
    scale = site["scale"]
    value: Tensor = site["log_prob"] / (scale**0.5 if isinstance(scale, Tensor) else sqrt(scale))
    if signed:
        value = value * (2 * torch.randint_like(value, 2) - 1)
    return value, next((frame for frame in site["cond_indep_stack"] if frame.name == PLATE), None)


def _by_draw(value: Tensor, frame: Any) -> Tensor:
    """Sums all but the draws: shape (K,), or () for a single draw."""
    if frame is None:
        return value.sum()
    value = value.expand(frame.size, *value.shape[1:]) if value.dim() == -frame.dim else value.sum().expand(frame.size)
    return value.reshape(frame.size, -1).sum(1)


def _gradient(value: Tensor, leaves: list[Tensor]) -> Tensor:
    gradients = torch.autograd.grad(value, leaves, retain_graph=True, materialize_grads=True, allow_unused=True)
    return torch.cat([gradient.reshape(-1) for gradient in gradients]).double()
