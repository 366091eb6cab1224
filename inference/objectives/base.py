"""The contract of an objective."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple, Protocol

from torch import Tensor

__all__ = ["Loss", "Objective"]


class Loss(NamedTuple):
    """What an objective returns: two scalars, in nats, totals over the whole data (a minibatch is scaled up to it)."""

    value: Tensor
    """The estimate of −ELBO, or of minus another bound; lower is better. Its gradient means nothing."""
    surrogate: Tensor
    """What autograd differentiates: its gradient is the gradient estimate. Its value means nothing."""


class Objective(Protocol):
    """Estimates a bound and its gradient from draws of the guide.

    An objective is a small frozen object. One call runs the guide and the model, as plain Pyro, and returns tensors: no
    number is read out of them and no branch depends on one, so that an engine can capture the call as a graph.
    """

    estimates_elbo: ClassVar[bool]
    """Whether `value` and the gradient of `surrogate` are unbiased estimates of those of −ELBO."""

    def __call__(
        self, model: Callable[..., Any], guide: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Loss:
        """One estimate.

        Args:
            model, guide: a Pyro pair with the same latents.
            args, kwargs: the arguments of one call of either.

        Raises:
            ValueError: if this objective cannot be used with this pair; the message names one that can.
        """
