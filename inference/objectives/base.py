"""The contract of an objective."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

from torch import Tensor

__all__ = ["Loss", "Objective"]


class Loss(NamedTuple):
    """What one evaluation of an objective gives."""

    value: Tensor
    """The estimate of the loss, in nats; lower is better."""
    surrogate: Tensor
    """What autograd differentiates: its gradient is the gradient estimate, its value means nothing."""


class Objective(Protocol):
    """A loss that is tensors from end to end, so that an engine can capture it."""

    def __call__(self, model: Callable[..., Any], guide: Callable[..., Any], args: Any, kwargs: Any) -> Loss:
        """One estimate, from one run of guide and model."""
