"""Draws h ~ q with the log densities of likelihood, prior and q: the input of every estimator without gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pyro
import torch
from pyro.distributions import Delta, Unit
from pyro.infer.autoguide import AutoGuide
from torch import Tensor

from guides import Defensive, Guide, Posterior, Prior
from models import Model

from .bound import unwrap
from .traced_pairs import trace_pair

__all__ = ["Draws", "draw_all", "draw_chunks"]

MAX_SCORED_NUMBERS = 2**18
"""Numbers in x times draws that one vectorised call scores. More of them do not fit the processor's cache."""


@dataclass(frozen=True)
class Draws:
    """K draws h ~ q_λ(h | x) and their log densities, in nats, of shape (K,) or, per datum, (K, N)."""

    h: dict[str, Tensor]
    """Each latent, shape (K, *shape)."""
    log_likelihood: Tensor
    """log p(x | h)."""
    log_prior: Tensor
    """log p(h)."""
    log_q: Tensor
    """log q(h | x); +inf where q is a point mass."""
    per_datum: bool
    pointwise: dict[str, Tensor]
    """log p(x | h) of each observed site, shape (K, *batch) with the batch shape of the site in the model."""

    @property
    def total(self) -> Draws:
        """The same draws with log densities summed over the data, shape (K,)."""
        if not self.per_datum:
            return self
        log_p = (self.log_likelihood.sum(-1), self.log_prior.sum(-1))
        return Draws(self.h, *log_p, self.log_q.sum(-1), per_datum=False, pointwise=self.pointwise)


def draw_chunks(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    args: tuple[Any, ...],
    *,
    draws: int,
) -> Iterator[Draws]:
    """Yields `draws` draws in chunks. Log densities are per datum if every latent lies inside the data plate.

    Models and guides of this suite, and Pyro's autoguides, are called with an outer plate of draws; any other pair is
    called once for each draw. Run it inside `isolated`.
    """
    plate = getattr(unwrap(guide), "plate", "data")
    with torch.no_grad():
        one = _trace(model, guide, args)
        point_masses = _point_masses(one, _trace(model, guide, args))
        nesting = max((-f.dim for s in one for f in s["cond_indep_stack"] if f.dim is not None), default=0)
        if not (
            isinstance(unwrap(model), Model) and isinstance(unwrap(guide), (Defensive, Guide, Prior, Posterior, AutoGuide))
        ):
            for _ in range(draws):
                sites = _trace(model, guide, args)
                yield _collect(sites, 1, nesting, plate, vectorised=False, point_masses=point_masses)
            return
        numbers = sum(site["value"].numel() for site in one if site["is_observed"])
        chunk = max(1, MAX_SCORED_NUMBERS // max(1, numbers))
        for start in range(0, draws, chunk):
            size = min(chunk, draws - start)
            with pyro.plate("_draws", size, dim=-1 - nesting):
                sites = _trace(model, guide, args)
            yield _collect(sites, size, nesting, plate, vectorised=True, point_masses=point_masses)


def draw_all(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    args: tuple[Any, ...],
    *,
    draws: int,
) -> Draws:
    """All chunks of `draw_chunks` joined."""
    chunks = list(draw_chunks(model, guide, args, draws=draws))
    first = chunks[0]
    return Draws(
        h={name: torch.cat([chunk.h[name] for chunk in chunks]) for name in first.h},
        log_likelihood=torch.cat([chunk.log_likelihood for chunk in chunks]),
        log_prior=torch.cat([chunk.log_prior for chunk in chunks]),
        log_q=torch.cat([chunk.log_q for chunk in chunks]),
        per_datum=first.per_datum,
        pointwise={name: torch.cat([chunk.pointwise[name] for chunk in chunks]) for name in first.pointwise},
    )


def _trace(model: Callable[..., Any], guide: Callable[..., Any], args: tuple[Any, ...]) -> list[dict[str, Any]]:
    """The sample sites of one call of guide and model, each with its "log_prob" and a "role": q, prior or likelihood."""
    guide_trace, model_trace = trace_pair(model, guide, args, {})
    sites = []
    for trace in (guide_trace, model_trace):
        trace.compute_log_prob()
        for site in trace.nodes.values():
            if site["type"] == "sample" and not site["infer"].get("_deterministic"):
                role = "q" if trace is guide_trace else "likelihood" if site["is_observed"] else "prior"
                sites.append({**site, "role": role})
    return sites


def _collect(
    sites: list[dict[str, Any]], draws: int, nesting: int, plate: str, *, vectorised: bool, point_masses: bool
) -> Draws:
    per_datum = all(_dim(site, plate) is not None for site in sites)

    def density(role: str) -> Tensor:
        """The log density of one role, summed over its sites and over all dimensions except draws and data."""
        total = torch.zeros(())
        for site in sites:
            if site["role"] == role:
                value = _aligned(site["log_prob"], nesting, draws)
                keep = {0, value.dim() + (_dim(site, plate) or 0)} if per_datum else {0}
                dims = [d for d in range(value.dim()) if d not in keep]
                total = total + (value.sum(dims) if dims else value)
        return total

    log_q, log_prior, log_likelihood = torch.broadcast_tensors(density("q"), density("prior"), density("likelihood"))
    if point_masses:
        log_q = torch.full_like(log_q, torch.inf)
    h = {site["name"]: _values(site, nesting, draws, vectorised) for site in sites if site["role"] == "prior"}
    pointwise = {
        site["name"]: _squeezed(_aligned(site["log_prob"], nesting, draws), site, nesting)
        for site in sites
        if site["role"] == "likelihood" and not isinstance(site["fn"], Unit)
    }
    return Draws(h, log_likelihood, log_prior, log_q, per_datum, pointwise)


def _dim(site: dict[str, Any], plate: str) -> int | None:
    """The batch dimension, counted from the right, of the data plate at this site."""
    return next((frame.dim for frame in site["cond_indep_stack"] if frame.name == plate), None)


def _aligned(value: Tensor, nesting: int, draws: int) -> Tensor:
    """Reshapes `value` to have the draws in dimension 0, followed by `nesting` plates."""
    value = value.reshape((1,) * (nesting + 1 - value.dim()) + tuple(value.shape))
    return value.expand(draws, *value.shape[1:])


def _values(site: dict[str, Any], nesting: int, draws: int, vectorised: bool) -> Tensor:
    """Draws of one latent, shape (K, *shape), where shape holds only the plates that contain the latent."""
    value: Tensor = site["value"]
    if not vectorised:
        return value.unsqueeze(0)
    batch = value.dim() - len(site["fn"].event_shape)
    value = value.reshape((1,) * (nesting + 1 - batch) + tuple(value.shape))
    return _squeezed(value.expand(draws, *value.shape[1:]), site, nesting)


def _squeezed(value: Tensor, site: dict[str, Any], nesting: int) -> Tensor:
    """Drops from `value`, shape (K, *plates, *event), the plates that do not contain the site."""
    inside = {frame.dim for frame in site["cond_indep_stack"]}
    outside = [d for d in range(1, nesting + 1) if d - nesting - 1 not in inside]
    return value.squeeze(outside) if outside else value


def _point_masses(one: list[dict[str, Any]], other: list[dict[str, Any]]) -> bool:
    """Whether q is a point mass, decided from the sites of two calls.

    Autoguides also use Delta sites, but to pass on an auxiliary draw, whose value differs between the two calls.
    """
    return any(
        site["role"] == "q"
        and isinstance(getattr(site["fn"], "base_dist", site["fn"]), Delta)
        and torch.equal(site["value"], again["value"])
        for site, again in zip(one, other, strict=False)
    )
