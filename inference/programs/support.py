"""Checks that a guide draws no latent where its prior is zero."""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from typing import Any

import torch
from pyro import poutine
from pyro.contrib.easyguide import EasyGuide
from pyro.infer.autoguide import AutoGuide
from pyro.util import get_rng_state, set_rng_state
from torch import Tensor
from torch.distributions import constraints

from guides import Defensive, Guide, Posterior, Prior

from .bound import unwrap
from .masked_data import hidden_entries
from .traced_pairs import Pair, is_point_mass, latents, trace_pair

__all__ = ["check_support"]

CHECKED_DRAWS = 300
"""Draws of a guide whose distributions may leave the support: a share of 1.5 % outside is missed once in a hundred."""
MAX_SIMPLEX_ERROR = 1e-3
"""Rounding of a sum of probabilities."""

Program = Callable[..., Any]


def check_support(
    model: Program, guide: Program, args: tuple[Any, ...], kwargs: dict[str, Any], *, pair: Pair | None = None
) -> None:
    """Raises a ValueError if draws of the guide lie where the prior is zero: the KL is infinite there, and the ELBO −inf.

    torch's log densities outside a support are not −inf, but any number, unless it validates them. Only if the distributions
    of the guide leave it open are `CHECKED_DRAWS` draws made. Random states stay as they are.

    Args:
        model, guide, args, kwargs: the pair and the arguments of one call.
        pair: traces of one call, if known.
    """
    before = get_rng_state()
    try:
        with torch.no_grad(), poutine.block():
            known = trace_pair(model, guide, args, kwargs) if pair is None else pair
            if not _outside(known) and all(_covered(name, known, guide) for name in latents(known.guide)):
                return
            counts: dict[str, int] = {}
            for _ in range(CHECKED_DRAWS):
                known = trace_pair(model, guide, args, kwargs)
                for name in _outside(known):
                    counts[name] = counts.get(name, 0) + 1
    finally:
        set_rng_state(before)
    if counts:
        name = max(counts, key=lambda site: counts[site])
        support = latents(known.model)[name]["fn"].support
        raise ValueError(
            f"the guide draws the latent {name!r} outside the support of its prior, {support}, "
            f"in {100 * counts[name] / CHECKED_DRAWS:.2g} % of {CHECKED_DRAWS} draws. The prior is zero there, so the ELBO is "
            "−inf: draw it from a distribution with that support (LogNormal for positive numbers), as AutoNormal does."
        )


def _outside(pair: Pair) -> list[str]:
    """The latents of which a draw has an entry outside the support."""
    found = []
    for name, site in latents(pair.model).items():
        try:
            bad = _invalid(site["fn"].support, site["value"])
            bad = bad | (site["fn"].log_prob(site["value"]) == -inf) if not bad.any() else bad
        except (NotImplementedError, ValueError, RuntimeError):
            continue  # The support is unknown, or a check of shapes says what is wrong.
        hidden = hidden_entries(site)
        if hidden is not None:
            events = tuple(range(hidden.dim() - site["fn"].event_dim, hidden.dim()))
            bad = bad & ~(hidden.all(events) if events else hidden)
        if bool(bad.any()):
            found.append(name)
    return found


def _invalid(support: Any, value: Tensor) -> Tensor:
    """Which entries lie outside a support; rounding on a curved one, such as the correlation matrices, is none."""
    if support is constraints.simplex:
        return (value < 0).any(-1) | ((value.sum(-1) - 1).abs() > MAX_SIMPLEX_ERROR)
    if _bounds(_base(support)) is None:
        return torch.zeros(value.shape[: value.dim() - support.event_dim], dtype=torch.bool, device=value.device)
    outside: Tensor = ~support.check(value)
    return outside


def _covered(name: str, pair: Pair, guide: Program) -> bool:
    """Whether all draws of a latent must lie in the support of its prior."""
    ours, theirs = latents(pair.guide)[name], latents(pair.model).get(name)
    if theirs is None:
        return True
    support = theirs["fn"].support
    if is_point_mass(ours["fn"]):
        own = unwrap(guide)
        if isinstance(own, AutoGuide) and own.prototype_trace is not None:
            prototype = own.prototype_trace.nodes.get(name, {}).get("fn")
            # It maps to the support at its first call, which may depend on other latents.
            return prototype is None or _within(prototype.support, support)
        return isinstance(own, AutoGuide | EasyGuide | Guide | Defensive | Posterior | Prior)
    return _within(ours["fn"].support, support)


def _within(inner: Any, outer: Any) -> bool:
    """Whether one support is known to lie within the other."""
    inner, outer = _base(inner), _base(outer)
    if inner is outer:
        return True
    small, large = _bounds(inner), _bounds(outer)
    if small is None or large is None:
        return type(inner) is type(outer)
    if outer.is_discrete and not inner.is_discrete:
        return False
    if any(isinstance(bound, Tensor) for bound in (*small, *large)):
        # The bounds may depend on other draws: one call shows only that they are the same.
        return all(torch.equal(*torch.broadcast_tensors(*map(torch.as_tensor, b))) for b in zip(small, large, strict=True))
    return bool(large[0] <= small[0] and small[1] <= large[1])


def _base(support: Any) -> Any:
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    return support


def _bounds(support: Any) -> tuple[Any, Any] | None:
    """The lowest and the highest number of an interval; None for a support of another kind."""
    if support in (constraints.real, constraints.real_vector):
        return -inf, inf
    if support is constraints.boolean:
        return 0.0, 1.0
    low, high = getattr(support, "lower_bound", None), getattr(support, "upper_bound", None)
    if low is None and high is None:
        return None
    return -inf if low is None else low, inf if high is None else high
