"""The support of a latent as a constraint to which torch knows a bijection from unconstrained space."""

from __future__ import annotations

import copy
from typing import Any

import torch
from pyro.distributions import constraints
from torch import Tensor
from torch.distributions import biject_to
from torch.distributions.constraints import Constraint, MixtureSameFamilyConstraint

__all__ = ["support_of"]


def support_of(name: str, fn: Any) -> Constraint:
    """The support of the latent `name`, whose distribution is `fn`.

    A mixture of components of one family has the support of its components, if they share one.

    Raises:
        ValueError: if no bijection leads to the support.
    """
    try:
        support = _plain(fn.support)
        if not support.is_discrete:
            biject_to(support)
    except NotImplementedError as error:
        raise ValueError(
            f"the latent {name!r} ({type(fn).__name__}) has a support to which no bijection from unconstrained space is known "
            f"({error}): write it as a function of a latent that has one, or pass a plain Pyro guide that draws it inside its "
            "support."
        ) from None
    return support


def _plain(support: Any) -> Constraint:
    """The support without torch's wrapper for mixtures, for which it has no bijection."""
    if isinstance(support, MixtureSameFamilyConstraint):
        inner = _plain(support.base_constraint)
        return _shared(inner, -1 - inner.event_dim)
    if isinstance(support, constraints.independent):
        return constraints.independent(_plain(support.base_constraint), support.reinterpreted_batch_ndims)
    found: Constraint = support
    return found


def _shared(support: Constraint, components: int) -> Constraint:
    """The support that all components share; `components` is their dimension in the bounds, counted from the right."""
    changed: dict[str, Any] = {}
    for attribute, value in vars(support).items():
        if isinstance(value, Constraint):
            changed[attribute] = _shared(value, components)
        elif isinstance(value, Tensor) and value.dim() >= -components:
            first = value.select(components, 0)
            if not torch.equal(value, first.unsqueeze(components).expand_as(value)):
                raise NotImplementedError("the components of the mixture have different bounds")
            changed[attribute] = first
    if all(value is vars(support)[attribute] for attribute, value in changed.items()):
        return support
    new = copy.copy(support)
    vars(new).update(changed)
    return new
