"""Exact answers are computed in float64, whatever the dtype of the model and its data."""

from __future__ import annotations

import copy
from typing import TypeVar

import torch
from torch import Tensor
from torch.distributions import Distribution
from torch.distributions.utils import lazy_property

__all__ = ["cast", "widened"]

D = TypeVar("D", bound=Distribution)


def cast(distribution: D, dtype: torch.dtype) -> D:
    """The same distribution with its parameters in `dtype`; differentiable in them."""
    new = copy.copy(distribution)
    for name, value in vars(distribution).items():
        if isinstance(value, Distribution):
            setattr(new, name, cast(value, dtype))
        elif isinstance(value, Tensor) and value.is_floating_point():
            if _is_derived(distribution, name, value):
                # It was computed in another precision; torch computes it again when it is needed.
                del new.__dict__[name]
            else:
                new.__dict__[name] = value.to(dtype)
    if isinstance(vars(distribution).get("_param"), Tensor):
        # torch knows by identity which of two equivalent parameters was given.
        given = next(name for name, value in vars(distribution).items() if value is vars(distribution)["_param"])
        new.__dict__["_param"] = new.__dict__[given]
    return new


def widened(distribution: D) -> D:
    """The same distribution in float64."""
    return cast(distribution, torch.float64)


def _is_derived(distribution: Distribution, name: str, value: Tensor) -> bool:
    """Whether an attribute is a quantity that torch has computed from the parameters and kept."""
    if not isinstance(getattr(type(distribution), name, None), lazy_property):
        return False
    given = vars(distribution).get("_param")
    return given is not value if given is not None else any(other.startswith("_unbroadcasted") for other in vars(distribution))
