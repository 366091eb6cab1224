"""Tensors that a computation can use without a trace outside it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

__all__ = ["make_learnable", "separated"]


def separated(args: Any) -> Any:
    """The same arguments, with tensors that gradients do not reach. The same objects if none of them has to change.

    A leaf that requires a gradient would be given one in its ``grad``. A tensor made under `torch.inference_mode` cannot be
    differentiated through at all, and is copied.
    """
    return tree_map_only(Tensor, _separate, args)


def make_learnable(program: Any) -> None:
    """Replaces the tensors of a module that were made under `torch.inference_mode`, which cannot be learned, by equal ones."""
    new: dict[int, Tensor] = {}
    for module in program.modules() if isinstance(program, nn.Module) else ():
        for tensors in (module._parameters, module._buffers):
            for name, value in tensors.items():
                if value is None or not value.is_inference():
                    continue
                if id(value) not in new:
                    copy = value.detach().clone()
                    is_parameter = isinstance(value, nn.Parameter)
                    new[id(value)] = nn.Parameter(copy, requires_grad=value.requires_grad) if is_parameter else copy
                tensors[name] = new[id(value)]  # type: ignore[assignment]


def _separate(value: Tensor) -> Tensor:
    if value.is_inference():
        with torch.inference_mode(False):
            return value.clone()
    return value.detach() if value.requires_grad and value.is_leaf else value
