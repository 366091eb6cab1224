"""Log weights log p(x, h) − log q(h | x), per datum where the pair allows it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod
from typing import Any

import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from pyro.poutine.indep_messenger import CondIndepStackFrame
from torch import Tensor

from .traced_pairs import PLATE, Pair, Program, held, latents

__all__ = ["Weights", "check_draws", "density", "held_weights", "shared_frames", "weights"]


@dataclass(frozen=True)
class Weights:
    """Log densities of K draws, in nats. Shape (K, *plates): the plates that *every* site of the pair lies in.

    Data inside such plates are independent given the parameters, so each has a weight of its own. Where a latent is shared
    between data there is no such plate, and one weight, of shape (K,), stands for all of them.
    """

    log_p: Tensor
    """log p(x, h)."""
    log_q: Tensor
    """log q(h | x)."""
    scale: float
    """Rows of the data for each row of the minibatch: what a sum over the plates is multiplied with."""
    frames: tuple[CondIndepStackFrame, ...]
    pairs: list[Pair]
    """The traces that they come from."""

    @property
    def log_w(self) -> Tensor:
        """log p(x, h) − log q(h | x)."""
        return self.log_p - self.log_q

    def total(self, bound: Tensor) -> Tensor:
        """The sum of a per-datum `bound`, shape (*plates), over the whole data."""
        return self.scale * bound.sum()


def weights(pairs: list[Pair], objective: Any, *, linear: bool = False) -> Weights:
    """The log weights of draws.

    Args:
        pairs: from `traces`.
        objective: whose they are, for the error.
        linear: whether the objective is linear in the log weight, so that a minibatch's joint weight does no harm.

    Raises:
        ValueError: if the data are a minibatch and a latent is shared between data, unless `linear`.
    """
    frames = shared_frames(pairs[0])
    scale = prod((frame.full_size or frame.size) / frame.size for frame in frames)
    if not linear:
        _refuse_joint_minibatch(pairs[0], frames, objective)
    log_p = density([pair.model for pair in pairs], frames) / scale
    log_q = density([pair.guide for pair in pairs], frames) / scale
    return Weights(log_p, log_q, scale, frames, pairs)


def held_weights(known: Weights, model: Program, guide: Program, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Weights:
    """The same log weights, but with the draws held fixed: the gradient reaches the parameters through the densities alone.

    Runs nothing twice where it can: if the guide draws once and the model has nothing to learn, then the distribution that
    the draw came from scores it again as it stands.
    """
    if all(_draws_once(pair) for pair in known.pairs):
        log_q = density([_rescored(pair.guide) for pair in known.pairs], known.frames) / known.scale
        return replace(known, log_p=known.log_p.detach(), log_q=log_q)
    pairs = [held(pair, model, guide, args, kwargs) for pair in known.pairs]
    log_p = density([pair.model for pair in pairs], known.frames) / known.scale
    log_q = density([pair.guide for pair in pairs], known.frames) / known.scale
    return replace(known, log_p=log_p, log_q=log_q)


def check_draws(objective: Any, k: int, *, least: int = 1) -> None:
    """Raises unless `k`, the number of draws, is an integer of at least `least`."""
    if isinstance(k, bool) or not isinstance(k, int):
        raise TypeError(f"{type(objective).__name__}: the number of draws must be an integer, but is {k!r}.")
    if k < least:
        raise ValueError(f"{type(objective).__name__}: the number of draws must be at least {least}, but is {k}.")


def _sites(trace: poutine.Trace) -> list[dict[str, Any]]:
    return [site for site in trace.nodes.values() if site["type"] == "sample"]


def shared_frames(pair: Pair) -> tuple[CondIndepStackFrame, ...]:
    """The vectorised plates that every site of guide and model lies in, from the outermost, without the draws'."""
    stacks = [
        {f.dim: f for f in site["cond_indep_stack"] if f.vectorized and f.name != PLATE}
        for trace in pair
        for site in _sites(trace)
    ]
    first = stacks[0] if stacks else {}
    dims = sorted(d for d, f in first.items() if all(d in s and s[d].name == f.name for s in stacks))
    return tuple(first[d] for d in dims)


def _refuse_joint_minibatch(pair: Pair, frames: tuple[CondIndepStackFrame, ...], objective: Any) -> None:
    own = {frame.name for frame in frames}
    for trace in pair:
        for site in _sites(trace):
            for frame in site["cond_indep_stack"]:
                if frame.name not in own and frame.full_size not in (None, frame.size):
                    raise ValueError(
                        f"{type(objective).__name__} is not linear in log p(x | h), so that a minibatch of the plate "
                        f"{frame.name!r} biases it where a latent is shared between data: use TraceELBO, or batch_size=None."
                    )


def density(parts: list[poutine.Trace], frames: tuple[CondIndepStackFrame, ...]) -> Tensor:
    """The traces' log densities, shape (K, *plates): all other dimensions summed."""
    rows = []
    for trace in parts:
        sites = _sites(trace)
        draws = next((f.dim for s in sites for f in s["cond_indep_stack"] if f.name == PLATE), None)
        keep = [d for d in (draws, *(f.dim for f in frames)) if d is not None]
        total = sum((_kept(site["log_prob"], keep) for site in sites), start=torch.zeros(()))
        rows.append(total if draws is not None else total.unsqueeze(0))
    return torch.cat(rows)


def _kept(value: Tensor, keep: list[int]) -> Tensor:
    """`value` summed over all its dimensions but those counted from the right in `keep`."""
    value = value.reshape((1,) * (max((-d for d in keep), default=0) - value.dim()) + tuple(value.shape))
    dims = [d for d in range(-value.dim(), 0) if d not in keep]
    return value.sum(dims) if dims else value


def _draws_once(pair: Pair) -> bool:
    """Whether the guide makes a single draw, so that no draw depends on another, and only the guide has parameters."""
    learns = any(site["type"] == "param" and site["value"].requires_grad for site in pair.model.nodes.values())
    return not learns and len(latents(pair.guide)) == 1


def _rescored(guide: poutine.Trace) -> poutine.Trace:
    trace = poutine.Trace()
    for name, site in latents(guide).items():
        log_prob = site["fn"].log_prob(site["value"].detach(), *site["args"], **site["kwargs"])
        trace.add_node(name, **{**site, "log_prob": scale_and_mask(log_prob, site["scale"], site["mask"])})
    return trace
