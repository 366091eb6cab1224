"""Draws h ~ q with the log densities of likelihood, prior and q: the input of every estimator without gradients."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

import torch
from pyro.infer.autoguide import AutoGuide
from torch import Tensor

from guides import Defensive, Guide, Posterior, Prior
from models import Model

from .bound import unwrap
from .mapped_draws import MappedDraws
from .mapping import NotMappedError
from .scored_sites import ScoredSite, scored, scored_under_plate
from .whole_data import on_all_rows

__all__ = ["Draws", "draw_all", "draw_chunks"]

MAX_SCORED_NUMBERS = 2**18
"""Numbers in x times draws that one vectorised call scores. More of them do not fit the processor's cache."""


MIN_MAPPED = 8
"""Draws from which mapping pays off: it costs some calls of guide and model for its check."""


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

    Models and guides of this suite, and Pyro's autoguides on these models, are called with an outer plate of draws. Any other
    pair is mapped over draws (`MappedDraws`); one that cannot be mapped is called once for each draw, with a warning that
    says why. Run it inside `isolated`.
    """
    plate = getattr(unwrap(guide), "plate", "data")
    vectorises = _vectorises(model, guide)
    with torch.no_grad():
        one = scored(model, guide, args)
        if any(f.full_size is not None and f.size < f.full_size for s in one for f in s.frames):
            model, guide, one = _on_all_rows(model, guide, args, one)
        other = scored(model, guide, args)
        point_masses = _point_masses(one, other)
        nesting = max((-f.dim for s in one for f in s.frames if f.dim is not None), default=0)
        # A mapped program holds the latents of all draws; those of this suite's models are few beside their data.
        numbers = sum(site.value.numel() for site in one if site.role == "likelihood" or not vectorises)
        chunk = max(1, MAX_SCORED_NUMBERS // max(1, numbers))
        sizes = [min(chunk, draws - start) for start in range(0, draws, chunk)]

        def collected(sites: list[ScoredSite]) -> Draws:
            return _collect(sites, nesting, plate, point_masses=point_masses)

        if vectorises:
            for size in sizes:
                yield collected(scored_under_plate(model, guide, args, draws=size, nesting=nesting))
            return
        left = draws
        if draws >= MIN_MAPPED:
            mapped = MappedDraws(model, guide, args, one, other)
            try:
                for size in sizes:
                    sites = mapped.draw(size)
                    left -= size
                    yield collected(sites)
            except NotMappedError as reason:
                _warn_once(model, guide, str(reason))
        for _ in range(left):
            sites = scored(model, guide, args)
            yield collected([s._replace(log_prob=s.log_prob.unsqueeze(0), value=s.value.unsqueeze(0)) for s in sites])


def draw_all(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    args: tuple[Any, ...],
    *,
    draws: int,
) -> Draws:
    """All chunks of `draw_chunks` joined. Sites that not all draws have, or not in one shape, are left out of `h`."""
    chunks = list(draw_chunks(model, guide, args, draws=draws))
    first = chunks[0]
    return Draws(
        h=_joined([chunk.h for chunk in chunks]),
        log_likelihood=torch.cat([chunk.log_likelihood for chunk in chunks]),
        log_prior=torch.cat([chunk.log_prior for chunk in chunks]),
        log_q=torch.cat([chunk.log_q for chunk in chunks]),
        per_datum=first.per_datum,
        pointwise=_joined([chunk.pointwise for chunk in chunks]),
    )


def _joined(parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The tables that all parts have, row after row."""
    shapes = [{(name, value.shape[1:]) for name, value in part.items()} for part in parts]
    everywhere = {name for name, _ in set.intersection(*shapes)}
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0] if name in everywhere}


def _vectorises(model: Callable[..., Any], guide: Callable[..., Any]) -> bool:
    """Whether the pair takes an outer plate of draws."""
    return isinstance(unwrap(model), Model) and isinstance(unwrap(guide), (Defensive, Guide, Prior, Posterior, AutoGuide))


def _on_all_rows(
    model: Callable[..., Any], guide: Callable[..., Any], args: tuple[Any, ...], one: list[ScoredSite]
) -> tuple[Callable[..., Any], Callable[..., Any], list[ScoredSite]]:
    """Model and guide with all rows in the plates that subsample by themselves, and their sites.

    A program that takes a minibatch as its data has a plate of the minibatch's size and no other rows: it is left as it is.
    """
    whole_model, whole_guide = on_all_rows(model), on_all_rows(guide)
    try:
        return whole_model, whole_guide, scored(whole_model, whole_guide, args)
    except (RuntimeError, ValueError, IndexError):
        return model, guide, one


def _warn_once(model: Callable[..., Any], guide: Callable[..., Any], reason: str) -> None:
    """Warns that a pair is called once for each draw, the first time that it is."""
    known = _WARNED.setdefault(unwrap(guide), WeakSet())
    if unwrap(model) not in known:
        known.add(unwrap(model))
        warnings.warn(f"guide and model are called once for each draw, which is slow, because {reason}.", stacklevel=3)


_WARNED: WeakKeyDictionary[Callable[..., Any], WeakSet[Callable[..., Any]]] = WeakKeyDictionary()


def _collect(sites: list[ScoredSite], nesting: int, plate: str, *, point_masses: bool) -> Draws:
    per_datum = all(_dim(site, plate) is not None for site in sites)

    def density(role: str) -> Tensor:
        """The log density of one role, summed over its sites and over all dimensions except draws and data."""
        total = torch.zeros(())
        for site in sites:
            if site.role == role:
                value = _padded(site.log_prob, nesting)
                keep = {0, value.dim() + (_dim(site, plate) or 0)} if per_datum else {0}
                dims = [d for d in range(value.dim()) if d not in keep]
                total = total + (value.sum(dims) if dims else value)
        return total

    log_q, log_prior, log_likelihood = torch.broadcast_tensors(density("q"), density("prior"), density("likelihood"))
    if point_masses:
        log_q = torch.full_like(log_q, torch.inf)
    h = {site.name: site.value for site in sites if site.role == "prior"}
    pointwise = {
        site.name: _squeezed(_padded(site.log_prob, nesting), site, nesting)
        for site in sites
        if site.role == "likelihood" and site.pointwise
    }
    return Draws(h, log_likelihood, log_prior, log_q, per_datum, pointwise)


def _dim(site: ScoredSite, plate: str) -> int | None:
    """The batch dimension, counted from the right, of the data plate at this site."""
    return next((frame.dim for frame in site.frames if frame.name == plate), None)


def _padded(value: Tensor, nesting: int) -> Tensor:
    """`value`, shape (K, *plates), with as many plates as the pair nests."""
    return value.reshape(len(value), *(1,) * (nesting + 1 - value.dim()), *value.shape[1:])


def _squeezed(value: Tensor, site: ScoredSite, nesting: int) -> Tensor:
    """Drops from `value`, shape (K, *plates, *event), the plates that do not contain the site."""
    inside = {frame.dim for frame in site.frames}
    outside = [d for d in range(1, nesting + 1) if d - nesting - 1 not in inside]
    return value.squeeze(outside) if outside else value


def _point_masses(one: list[ScoredSite], other: list[ScoredSite]) -> bool:
    """Whether q is a point mass, decided from the sites of two calls.

    Autoguides also use Delta sites, but to pass on an auxiliary draw, whose value differs between the two calls.
    """
    return any(
        site.role == "q" and site.point_mass and torch.equal(site.value, again.value)
        for site, again in zip(one, other, strict=False)
    )
