"""Log weights log p(x, h) − log q(h | x), per datum where the plates of the pair allow it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod
from typing import Any

import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from pyro.poutine.indep_messenger import CondIndepStackFrame
from torch import Tensor

from .traced_pairs import PLATE, Pair, Program, held_pair, latents

__all__ = ["LogWeights", "held_log_weights", "log_density", "pair_log_weights", "shared_frames"]

MAX_ROUNDING = 1e-6
"""Relative difference of two scales that are equal but for rounding."""


@dataclass(frozen=True)
class LogWeights:
    """Log densities of K draws, in nats. Shape (K, *plates), with the plates that contain *every* site of the pair.

    Data inside these plates are independent given the parameters, so each has its own weight. A latent shared between data
    leaves no such plate: then there is one weight for all data, of shape (K,).
    """

    log_p: Tensor
    """log p(x, h)."""
    log_q: Tensor
    """log q(h | x)."""
    scale: float
    """Size of the data over the size of the minibatch: the factor of sums over the plates."""
    frames: tuple[CondIndepStackFrame, ...]
    """The plates."""
    pairs: list[Pair]
    """The traces from which the densities were computed."""

    @property
    def log_w(self) -> Tensor:
        """log p(x, h) − log q(h | x)."""
        return self.log_p - self.log_q

    @property
    def score(self) -> Tensor:
        """log q(h | x) of the rows of a minibatch, not scaled up: its gradient is the score of the draws.

        A score times the log weight of all data is an unbiased gradient; scaled up too, it would count its rows twice.
        """
        return log_density([pair.guide for pair in self.pairs], self.frames, scaled=False)

    def total(self, bound: Tensor) -> Tensor:
        """The sum of a per-datum `bound`, shape (*plates), over the whole data."""
        return self.scale * bound.sum()


def pair_log_weights(pairs: list[Pair], objective: Any, *, linear: bool, minibatch: bool = False) -> LogWeights:
    """Computes the log weights of draws.

    Args:
        pairs: from `traced_pairs`.
        objective: the objective that uses them; its class is named in the error.
        linear: whether the objective is linear in the log weights, so that the joint weight of a minibatch is unbiased.
        minibatch: whether the data are some rows of more.

    Raises:
        ValueError: if the data are a minibatch, and a latent is shared between data or the likelihood is scaled up outside a
            plate, unless `linear`.
    """
    frames = shared_frames(pairs[0])
    scale = _factor(frames)
    if not linear:
        _refuse_joint_minibatch(pairs[0], frames, objective)
        if minibatch:
            _refuse_own_scale(pairs[0], objective)
    return LogWeights(*_log_densities(pairs, frames, scale), scale, frames, pairs)


def held_log_weights(
    known: LogWeights, model: Program, guide: Program, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> LogWeights:
    """The same log weights with the draws detached: gradients reach the parameters through the densities alone.

    If the guide has a single latent and the model nothing to learn, the distribution of the draw is scored again;
    otherwise guide and model are rerun.
    """
    if all(_draws_once(pair) for pair in known.pairs):
        log_q = log_density([_rescored(pair.guide) for pair in known.pairs], known.frames) / known.scale
        return replace(known, log_p=known.log_p.detach(), log_q=log_q)
    pairs = [held_pair(pair, model, guide, args, kwargs) for pair in known.pairs]
    log_p, log_q = _log_densities(pairs, known.frames, known.scale)
    return replace(known, log_p=log_p, log_q=log_q)


def shared_frames(pair: Pair) -> tuple[CondIndepStackFrame, ...]:
    """The vectorised plates that contain every site of guide and model, outermost first, without the plate of draws."""
    stacks = [
        {f.dim: f for f in site["cond_indep_stack"] if f.vectorized and f.name != PLATE}
        for trace in pair
        for site in _sites(trace)
    ]
    first = stacks[0] if stacks else {}
    dims = sorted(d for d, f in first.items() if all(d in s and s[d].name == f.name for s in stacks))
    return tuple(first[d] for d in dims)


def log_density(traces: list[poutine.Trace], frames: tuple[CondIndepStackFrame, ...], *, scaled: bool = True) -> Tensor:
    """The log densities of traces of K draws in all, shape (K, *plates), summed over sites and all other dimensions.

    Args:
        traces: scored traces.
        frames: the plates to keep.
        scaled: whether to apply the scale and the mask of each site.
    """
    parts, density = [], "log_prob" if scaled else "unscaled_log_prob"
    for trace in traces:
        sites = _sites(trace)
        draws = next((f.dim for s in sites for f in s["cond_indep_stack"] if f.name == PLATE), None)
        keep = [d for d in (draws, *(f.dim for f in frames)) if d is not None]
        total = sum((_summed(site[density], keep) for site in sites), start=torch.zeros(()))
        parts.append(total if draws is not None else total.unsqueeze(0))
    return torch.cat(parts)


def _log_densities(pairs: list[Pair], frames: tuple[CondIndepStackFrame, ...], scale: float) -> tuple[Tensor, Tensor]:
    """log p(x, h) and log q(h | x), each of shape (K, *plates), not scaled up from a minibatch."""
    log_p = log_density([pair.model for pair in pairs], frames) / scale
    log_q = log_density([pair.guide for pair in pairs], frames) / scale
    return log_p, log_q


def _sites(trace: poutine.Trace) -> list[dict[str, Any]]:
    return [site for site in trace.nodes.values() if site["type"] == "sample"]


def _refuse_joint_minibatch(pair: Pair, frames: tuple[CondIndepStackFrame, ...], objective: Any) -> None:
    names = {frame.name for frame in frames}
    for trace in pair:
        for site in _sites(trace):
            for frame in site["cond_indep_stack"]:
                if frame.name not in names and frame.full_size not in (None, frame.size):
                    raise ValueError(
                        f"{type(objective).__name__} is not linear in log p(x | h), so a minibatch of the plate "
                        f"{frame.name!r} biases it where a latent is shared between data: use TraceELBO, or batch_size=None."
                    )


def _refuse_own_scale(pair: Pair, objective: Any) -> None:
    """The weight of a datum would be raised to the power of the scale."""
    for name, site in pair.model.nodes.items():
        if site["type"] != "sample" or not site["is_observed"] or site["infer"].get("_deterministic"):
            continue
        plates = _factor(tuple(frame for frame in site["cond_indep_stack"] if frame.vectorized))
        if isinstance(site["scale"], Tensor) or abs(site["scale"] / plates - 1.0) > MAX_ROUNDING:
            raise ValueError(
                f"{type(objective).__name__} is not linear in log p(x | h), so scaling up the site {name!r} of a minibatch by "
                "poutine.scale biases it: use TraceELBO, or pyro.plate(name, size, subsample=index), which scales each bound."
            )


def _factor(frames: tuple[CondIndepStackFrame, ...]) -> float:
    """The factor by which plates scale up sums over their rows."""
    return prod((frame.full_size or frame.size) / frame.size for frame in frames)


def _summed(value: Tensor, keep: list[int]) -> Tensor:
    """`value` summed over all dimensions except `keep`, counted from the right."""
    value = value.reshape((1,) * (max((-d for d in keep), default=0) - value.dim()) + tuple(value.shape))
    dims = [d for d in range(-value.dim(), 0) if d not in keep]
    return value.sum(dims) if dims else value


def _draws_once(pair: Pair) -> bool:
    """Whether the guide has a single latent, so that no draw depends on another, and the model has nothing to learn."""
    learns = any(site["type"] == "param" and site["value"].requires_grad for site in pair.model.nodes.values())
    return not learns and len(latents(pair.guide)) == 1


def _rescored(guide: poutine.Trace) -> poutine.Trace:
    """The latents of the guide, scored at their detached values."""
    trace = poutine.Trace()
    for name, site in latents(guide).items():
        log_prob = site["fn"].log_prob(site["value"].detach(), *site["args"], **site["kwargs"])
        trace.add_node(name, **{**site, "log_prob": scale_and_mask(log_prob, site["scale"], site["mask"])})
    return trace
