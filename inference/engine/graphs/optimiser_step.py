"""A torch optimiser's step as a function of tensors."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from ..errors import LoopError

__all__ = ["read_state", "require_plain", "settings_of", "updated", "write_state"]


def require_plain(optimiser: Optimizer) -> None:
    """Raises a LoopError unless the optimiser's state consists of tensors and it has one group of parameters."""
    kind = type(optimiser).__name__
    if len(optimiser.param_groups) != 1:
        raise LoopError(f"{kind} has several groups of parameters")
    for state in optimiser.state.values():
        for key, value in state.items():
            if not isinstance(value, Tensor):
                raise LoopError(f"{kind} keeps {key!r} as {type(value).__name__}, not as a tensor")


def read_state(optimiser: Optimizer, parameters: Sequence[Tensor]) -> list[Tensor]:
    """The optimiser's state, parameter by parameter; counts of steps in double precision, as torch computes with them."""
    return [
        value.detach().double() if key == "step" else value.detach()
        for parameter in parameters
        for key, value in optimiser.state.get(parameter, {}).items()
    ]


def write_state(optimiser: Optimizer, parameters: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    """Sets the optimiser's state to `values`, in the order of `read_state`."""
    rest = iter(values)
    for parameter in parameters:
        for value in optimiser.state.get(parameter, {}).values():
            value.copy_(next(rest))


def updated(
    optimiser: Optimizer, parameters: Sequence[Tensor], gradients: Sequence[Tensor | None], state: Sequence[Tensor], lr: Tensor
) -> list[Tensor]:
    """The parameters after a step, then the optimiser's state in the order of `read_state`. Nothing is changed in place.

    Args:
        optimiser: only its class, settings and the names of its state are used.
        parameters, gradients, state: their values before the step.
        lr: the learning rate, a scalar tensor.

    Raises:
        LoopError: if the step cannot be captured.
    """
    with torch.no_grad():
        try:
            return _stepped(optimiser, parameters, gradients, state, lr)
        except Exception as error:
            try:
                whole = _stepped(optimiser, parameters, gradients, state, 1.0)
            except Exception:
                reason = str(error).strip().splitlines()[0]
                raise LoopError(f"the step of {type(optimiser).__name__} cannot be captured ({reason})") from error
        # This step reads lr as a number. Such optimisers move by lr times a direction, and their state does not depend on lr.
        moved = [p.detach() + lr.to(p.dtype) * (to - p.detach()) for p, to in zip(parameters, whole, strict=False)]
        return [*moved, *whole[len(moved) :]]


def _stepped(
    optimiser: Optimizer,
    parameters: Sequence[Tensor],
    gradients: Sequence[Tensor | None],
    state: Sequence[Tensor],
    lr: Tensor | float,
) -> list[Tensor]:
    rest = iter(state)
    leaves = [parameter.detach().clone() for parameter in parameters]
    for leaf, gradient in zip(leaves, gradients, strict=True):
        leaf.grad = None if gradient is None else gradient.detach()
    twin = copy.copy(optimiser)
    settings = {**optimiser.param_groups[0], "params": leaves, "lr": lr}
    # With these settings torch reads no number out of a tensor.
    settings.update({key: value for key, value in _TENSORS_ONLY.items() if key in settings})
    before = {key: value for key, value in settings.items() if key not in _EXCLUDED}
    twin.param_groups = [settings]
    twin.state = defaultdict(dict)
    for leaf, parameter in zip(leaves, parameters, strict=True):
        if parameter in optimiser.state:
            twin.state[leaf] = {key: next(rest).clone() for key in optimiser.state[parameter]}
    with _as_if_compiling():
        type(optimiser).step(twin)
    if settings_of(twin) != before:
        raise LoopError("it changes its own settings")
    return [*leaves, *(value for leaf in leaves for value in twin.state.get(leaf, {}).values())]


def settings_of(optimiser: Optimizer) -> dict[str, Any]:
    """The optimiser's settings except its learning rate."""
    return {key: value for key, value in optimiser.param_groups[0].items() if key not in _EXCLUDED}


_EXCLUDED = ("params", "lr", "initial_lr")
_TENSORS_ONLY: dict[str, Any] = {"capturable": True, "foreach": False, "fused": False}


@contextmanager
def _as_if_compiling() -> Iterator[None]:
    """torch allows `capturable=True` on a CPU only inside a compiler."""
    before = torch.compiler._is_compiling_flag
    torch.compiler._is_compiling_flag = True
    try:
        yield
    finally:
        torch.compiler._is_compiling_flag = before
