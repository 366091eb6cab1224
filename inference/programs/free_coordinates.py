"""Coordinates that can vary: a support such as that of Cholesky factors fixes some entries, and ties others together."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.distributions import biject_to, constraints

from .log_joint import LogJoint
from .quantities import Scalars, quantities, scalars

__all__ = ["fixed_by_support", "free_coordinates", "free_scalars"]

POINTS = 8
"""Random points at which an entry that a support fixes has one and the same value."""
MAX_UNCONSTRAINED = 30.0
"""Beyond this a bijection is flat to rounding: an entry of a simplex is 0 or 1 there, and says nothing of its coordinate."""


def free_coordinates(values: Tensor, fn: Any) -> Tensor:
    """Draws as unconstrained coordinates, shape (K, *), if the entries of one event depend on each other; else as they are.

    Args:
        values: shape (K, *shape).
        fn: the distribution that they were drawn from.
    """
    try:
        support = base = fn.support
    except NotImplementedError:
        return values
    while isinstance(base, constraints.independent):
        base = base.base_constraint
    if base is None or base.event_dim == 0:
        return values
    try:
        coordinates: Tensor = biject_to(support).inv(values.double())
    except (NotImplementedError, ValueError, RuntimeError):
        return values
    flat = (coordinates.abs() > MAX_UNCONSTRAINED).any(0)
    return coordinates[:, ~flat]


def fixed_by_support(joint: LogJoint) -> Tensor:
    """For each scalar of the model's quantities, whether it is the same whatever the latents: shape (D,)."""
    generator = torch.Generator().manual_seed(0)
    u = torch.randn(POINTS, joint.dim, generator=generator, dtype=torch.float64).to(joint.latents.dtype)
    draws = scalars(quantities(joint.model, joint.constrain(u))).draws
    return (draws == draws[0]).all(0)


def free_scalars(model: Callable[..., Any], args: tuple[Any, ...], h: Mapping[str, Tensor]) -> Scalars:
    """The table of the model's quantities at draws of the latents, without those that are the same whatever the latents."""
    table = scalars(quantities(model, h))
    constant = (table.draws == table.draws[0]).all(0)
    if not bool(constant.any()):
        return table
    try:
        constant &= fixed_by_support(LogJoint(model, args))
    except (TypeError, ValueError, NotImplementedError, RuntimeError):
        return table  # of discrete latents, or of supports that depend on one another
    kept = (~constant).nonzero().squeeze(-1).tolist()
    names, datum = (tuple(field[i] for i in kept) for field in (table.names, table.datum))
    return Scalars(names, table.draws[:, kept], datum)
