"""Fisher's information of a guide, through draws of its score: how far, in nats, a change of λ moves q."""

from __future__ import annotations

from collections.abc import Callable
from math import ceil, sqrt
from typing import Any

import torch
from pyro import poutine
from torch import Tensor

from ..engine.minibatches import Batch
from ..programs.traced_pairs import PLATE, Pair, is_point_mass, latents, traced_pairs

__all__ = ["data_count", "score_draws"]

DRAWS = 64
"""Of scores, however many data they are summed over: along one δ each is one number, its square a χ² of one degree."""
NUMBERS = 2_000
"""Draws times data in one call, about."""


def score_draws(model: Callable[..., Any], guide: Callable[..., Any], batch: Batch, leaves: list[Tensor]) -> Tensor:
    r"""Vectors s_k with E[(s_k · δ)²] = δᵀ F δ ≈ 2 KL(q_λ ‖ q_{λ+δ}), for a small change δ of all the leaves.

    For the guide s_k = ∇ log q_λ(h_k), h_k ~ q_λ held fixed, whatever the family. Leaves of the model (a decoder) move
    p(x, h): their information is that of the data and latents together, Σ ∇ log p_i ∇ log p_iᵀ over the terms of log p,
    summed by one gradient with random signs. A guide that is a point mass has no score; its leaves are taken as the model's.

    Args:
        model, guide: a Pyro pair.
        batch: the data, or a minibatch that stands for them.
        leaves: what is learned: p numbers in all.

    Returns:
        Shape (K, p), in float64.
    """
    count = min(DRAWS, max(4, NUMBERS // _numbers(guide, batch)))
    call: Any = (model, guide, batch.args, batch.kwargs)
    with torch.random.fork_rng(), torch.enable_grad(), poutine.block():
        hold = any(not is_point_mass(site["fn"]) for site in _drawn(guide, batch).values())
        parts = []
        for _ in range(ceil(DRAWS / count)):
            for pair in traced_pairs(*call, draws=count, hold=hold):
                parts += _scores(pair, leaves)
    return torch.stack(parts)


def data_count(guide: Callable[..., Any], batch: Batch) -> int:
    """N if every latent lies in one plate of N data, else 1."""
    with torch.random.fork_rng(), torch.no_grad(), poutine.block():
        sites = [site for site in _drawn(guide, batch).values() if not is_point_mass(site["fn"])]
    names = [{frame.name: frame for frame in site["cond_indep_stack"] if frame.vectorized} for site in sites]
    shared = set.intersection(*map(set, names)) if names else set()
    if not shared:
        return 1
    frame = names[0][shared.pop()]
    return int(frame.full_size or frame.size)


def _scores(pair: Pair, leaves: list[Tensor]) -> list[Tensor]:
    terms = [_term(site, signed=False) for site in latents(pair.guide).values() if not is_point_mass(site["fn"])]
    terms += [_term(site, signed=True) for site in _sites(pair.model) if site["log_prob"].requires_grad]
    total = sum((_by_draw(term, frame) for term, frame in terms), torch.zeros(()))
    return [_gradient(value, leaves) for value in total.reshape(-1)]


def _drawn(guide: Callable[..., Any], batch: Batch) -> dict[str, Any]:
    trace = poutine.trace(guide).get_trace(*batch.args, **batch.kwargs)
    return {n: s for n, s in latents(trace).items() if type(s["fn"]).__name__ != "_Subsample"}


def _numbers(guide: Callable[..., Any], batch: Batch) -> int:
    return data_count(guide, batch) if not batch.kwargs else len(batch.args[0])


def _sites(trace: poutine.Trace) -> list[dict[str, Any]]:
    return [site for site in trace.nodes.values() if site["type"] == "sample"]


def _term(site: dict[str, Any], *, signed: bool) -> tuple[Tensor, Any]:
    """Log densities, scaled so that their squares, not they, add up to the whole data; and the draws' plate, if any."""
    scale = site["scale"]
    value: Tensor = site["log_prob"] / (scale**0.5 if isinstance(scale, Tensor) else sqrt(scale))
    if signed:
        value = value * (2 * torch.randint_like(value, 2) - 1)
    return value, next((frame for frame in site["cond_indep_stack"] if frame.name == PLATE), None)


def _by_draw(value: Tensor, frame: Any) -> Tensor:
    """The sum over all but the draws: shape (K,), or () for a single draw."""
    if frame is None:
        return value.sum()
    value = value.expand(frame.size, *value.shape[1:]) if value.dim() == -frame.dim else value.sum().expand(frame.size)
    return value.reshape(frame.size, -1).sum(1)


def _gradient(value: Tensor, leaves: list[Tensor]) -> Tensor:
    gradients = torch.autograd.grad(value, leaves, retain_graph=True, materialize_grads=True, allow_unused=True)
    return torch.cat([gradient.reshape(-1) for gradient in gradients]).double()
