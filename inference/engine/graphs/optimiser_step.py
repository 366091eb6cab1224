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

__all__ = ["PlainOptimiserError", "read_state", "require_plain", "settings_of", "updated", "write_state"]


class PlainOptimiserError(RuntimeError):
    """The optimiser's step is not a function of tensors."""


def require_plain(optimiser: Optimizer) -> None:
    """Raises a PlainOptimiserError unless all that the optimiser remembers are tensors, in one group of parameters."""
    kind = type(optimiser).__name__
    if len(optimiser.param_groups) != 1:
        raise PlainOptimiserError(f"{kind} has several groups of parameters")
    for state in optimiser.state.values():
        for key, value in state.items():
            if not isinstance(value, Tensor):
                raise PlainOptimiserError(f"{kind} keeps {key!r} as {type(value).__name__}, not as a tensor")


def read_state(optimiser: Optimizer, parameters: Sequence[Tensor]) -> list[Tensor]:
    """All that the optimiser remembers, parameter by parameter; counts of steps in double, as torch computes with them."""
    return [
        value.detach().double() if key == "step" else value.detach()
        for parameter in parameters
        for key, value in optimiser.state.get(parameter, {}).items()
    ]


def write_state(optimiser: Optimizer, parameters: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    """The reverse of `read_state`."""
    rest = iter(values)
    for parameter in parameters:
        for value in optimiser.state.get(parameter, {}).values():
            value.copy_(next(rest))


def updated(
    optimiser: Optimizer, parameters: Sequence[Tensor], gradients: Sequence[Tensor | None], state: Sequence[Tensor], lr: Tensor
) -> list[Tensor]:
    """The parameters after a step, then the state, as `read_state` orders it. Nothing is changed in place.

    Args:
        optimiser: only its kind, settings and the names of its state are used.
        parameters, gradients, state, lr: the values that the step depends on; lr is a scalar tensor.
    """
    with torch.no_grad():
        try:
            return _stepped(optimiser, parameters, gradients, state, lr)
        except Exception as error:
            try:
                whole = _stepped(optimiser, parameters, gradients, state, 1.0)
            except Exception:
                reason = str(error).strip().splitlines()[0]
                raise PlainOptimiserError(f"the step of {type(optimiser).__name__} cannot be captured ({reason})") from error
        # torch reads lr as a number here: these optimisers move by lr times a direction, and keep nothing that depends on it.
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
    # The settings under which torch keeps to tensors: no number is read out of one.
    settings.update({key: value for key, value in _TENSORS_ONLY.items() if key in settings})
    before = {key: value for key, value in settings.items() if key not in _APART}
    twin.param_groups = [settings]
    twin.state = defaultdict(dict)
    for leaf, parameter in zip(leaves, parameters, strict=True):
        if parameter in optimiser.state:
            twin.state[leaf] = {key: next(rest).clone() for key in optimiser.state[parameter]}
    with _as_if_compiling():
        type(optimiser).step(twin)
    if settings_of(twin) != before:
        raise PlainOptimiserError("it changes its own settings")
    return [*leaves, *(value for leaf in leaves for value in twin.state.get(leaf, {}).values())]


def settings_of(optimiser: Optimizer) -> dict[str, Any]:
    """The optimiser's settings but for its learning rate."""
    return {key: value for key, value in optimiser.param_groups[0].items() if key not in _APART}


_APART = ("params", "lr", "initial_lr")
_TENSORS_ONLY: dict[str, Any] = {"capturable": True, "foreach": False, "fused": False}


@contextmanager
def _as_if_compiling() -> Iterator[None]:
    """torch takes `capturable=True` on a CPU only from a compiler, and this is one."""
    before = torch.compiler._is_compiling_flag
    torch.compiler._is_compiling_flag = True
    try:
        yield
    finally:
        torch.compiler._is_compiling_flag = before
