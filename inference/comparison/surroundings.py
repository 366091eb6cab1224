"""Parameters that a program takes from its surroundings, such as a net of the enclosing scope, kept as they are."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pyro
import torch
from pyro import poutine
from torch import Tensor, nn

from ..programs.bound import unwrap
from ..programs.copying import copied
from ..programs.isolation import isolated

__all__ = ["outside_tensors", "restored"]


def outside_tensors(model: Callable[..., Any], guide: Callable[..., Any], args: tuple[Any, ...]) -> list[Tensor]:
    """What a fit of the pair trains in place although neither model nor guide owns it: parameters and buffers of such nets.

    A parameter that is outside is the same tensor in two runs of the pair, each with a param store of its own. The pair is
    copied first, because the first run of a guide may draw its initial values.
    """
    runs = []
    try:
        memo: dict[int, Any] = {}
        pair = [copied(unwrap(program), memo) for program in (model, guide)]
        for _ in range(2):
            # A run moves the buffers of nets such as BatchNorm, wherever they are.
            with isolated(0), torch.no_grad(), restored([b for net in _nets() for b in net.buffers(recurse=False)]):
                trace = poutine.trace(pair[1]).get_trace(*args)
                poutine.trace(poutine.replay(pair[0], trace=trace)).get_trace(*args)
                runs.append([value for _, value in pyro.get_param_store().named_parameters()])
    except Exception:  # whatever is wrong with the pair, the fit says so
        return []
    own = {id(p) for program in pair if isinstance(program, nn.Module) for p in program.parameters()}
    places = {value.data_ptr() for value in runs[1]}
    outside = {id(value): value for value in runs[0] if id(value) not in own and value.data_ptr() in places}
    if not outside:
        return []
    for net in _nets():
        held = [value for holder in (net._parameters, net._buffers) for value in holder.values() if value is not None]
        if any(id(value) in outside for value in held):
            outside |= {id(value): value for value in held}
    return list(outside.values())


@contextmanager
def restored(tensors: list[Tensor]) -> Iterator[None]:
    """On exit, also by an error, gives the tensors the values that they have now."""
    before = [tensor.detach().clone() for tensor in tensors]
    try:
        yield
    finally:
        with torch.no_grad():
            for tensor, value in zip(tensors, before, strict=True):
                tensor.data.copy_(value)


def _nets() -> list[nn.Module]:
    """All modules there are: a plain function does not say which it uses."""
    nets = [value for value in gc.get_objects() if issubclass(type(value), nn.Module)]
    return [net for net in nets if "_parameters" in net.__dict__ and "_buffers" in net.__dict__]
