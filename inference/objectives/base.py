"""The contract of an objective."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple, Protocol

from torch import Tensor

from models.arguments import shown

from ..programs.arguments import check_fields
from ..programs.validation import check_draws

__all__ = ["FromDraws", "Loss", "Objective", "as_loss"]


class Loss(NamedTuple):
    """The result of an objective: two scalars, in nats, summed over the whole data (a minibatch is scaled up to it)."""

    value: Tensor
    """The estimate of −ELBO, or of minus another bound; lower is better. Its gradient has no meaning."""
    surrogate: Tensor
    """The tensor to differentiate: its gradient is the gradient estimate. Its value has no meaning."""


def as_loss(found: Any) -> Loss:
    """What an objective returned, as a `Loss`.

    Raises:
        TypeError: if it is not a pair of tensors.
    """
    if not (isinstance(found, tuple) and len(found) == 2 and all(isinstance(part, Tensor) for part in found)):
        raise TypeError(f"objective must return a Loss, two tensors (value, surrogate), but returned {shown(found)}.")
    return Loss(*found)


class Objective(Protocol):
    """Estimates a bound and its gradient from draws of the guide.

    An objective is a small frozen object. One call runs the guide and the model, as plain Pyro, and returns tensors. It
    reads no number out of a tensor and branches on none, so that an engine can capture the call as a graph.
    """

    estimates_elbo: ClassVar[bool]
    """Whether `value` and the gradient of `surrogate` are unbiased estimates of −ELBO and its gradient."""

    def __call__(
        self, model: Callable[..., Any], guide: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Loss:
        """Returns one estimate.

        Args:
            model, guide: a Pyro pair with the same latents.
            args, kwargs: the arguments of one call of either.

        Raises:
            ValueError: if the objective does not apply to this pair; the message names one that does.
        """


class FromDraws:
    """Base of the objectives with an option `draws`, the number K of draws of the guide in one estimate."""

    estimates_elbo: ClassVar[bool]
    min_draws: ClassVar[int] = 1
    draws: int

    def __post_init__(self) -> None:
        check_fields(self)
        check_draws(self, self.draws, least=self.min_draws)
