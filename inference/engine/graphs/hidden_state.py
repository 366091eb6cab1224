"""Finds state that a program keeps from one call to the next, other than parameters and large tensors."""

from __future__ import annotations

import itertools
import random
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from types import BuiltinFunctionType, CellType, CodeType, FunctionType, GeneratorType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["memory"]

PLAIN = (type(None), bool, int, float, complex, str, bytes)
LIBRARIES = ("torch", "pyro", "numpy", "builtins", "models", "guides", "inference")
"""Modules whose functions are not searched; the attributes of their objects are."""
MAX_VALUES = 20_000
"""The largest number of values that are compared, and of elements of a tensor; others are assumed unchanged."""


def memory(*programs: Callable[..., Any] | None, learned: Sequence[Tensor] = ()) -> list[Any]:
    """Numbers, strings, containers and iterators that the programs can reach, and the states of Python's and NumPy's RNGs.

    Searches closures, defaults, the globals that a function names, attributes of objects, classes and modules, and the
    functions found there. If the result is the same before and after a call, the call has left nothing there for the next
    one, such as a count of calls that anneals a scale, and has drawn from no generator but torch's.

    Args:
        programs: where to search.
        learned: the parameters. Tensors that share memory with one, such as its initial value, are ignored.
    """
    if not programs:
        return []
    generators = random.getstate(), repr(np.random.get_state())  # noqa: NPY002 - what a program may draw from
    return [*generators, *itertools.islice(_values(list(programs), set(map(_place, learned))), MAX_VALUES)]


def _values(found: list[Any], moving: set[int]) -> Iterator[Any]:
    seen: set[int] = set()
    kept: list[Any] = []
    while found:
        value = found.pop()
        if isinstance(value, PLAIN):
            yield type(value), repr(value)
        elif isinstance(value, (np.generic, np.ndarray)):
            yield type(value), value.tobytes() if value.size <= MAX_VALUES else value.shape
        elif isinstance(value, Tensor):
            plain = value.numel() <= MAX_VALUES and not value.requires_grad and value.layout == torch.strided
            if plain and _place(value) not in moving:
                yield type(value), repr(value.tolist())
        elif id(value) not in seen and not isinstance(value, (type, CodeType, BuiltinFunctionType)):
            seen.add(id(value))
            # Kept alive until the end, since a freed object's id may be reused.
            kept.append(value)
            yield type(value)
            found.extend(_parts(value))


def _place(value: Tensor) -> int:
    return value.untyped_storage().data_ptr()


def _parts(value: Any) -> list[Any]:
    parts: list[Any]
    match value:
        case list() | tuple() | deque():
            parts = list(value)
        case ModuleType():
            parts = [] if _is_library(value.__name__) else [v for v in vars(value).values() if isinstance(v, PLAIN)]
        case dict():
            parts = [part for pair in value.items() for part in pair]
        case set() | frozenset():
            parts = sorted(value, key=repr)
        case FunctionType():
            parts = _of_function(value)
        case MethodType():
            parts = [value.__self__, value.__func__]
        case partial():
            parts = [value.func, value.args, value.keywords]
        case GeneratorType():
            parts = [] if value.gi_frame is None else [value.gi_frame.f_lasti, dict(value.gi_frame.f_locals)]
        case itertools.count():
            parts = [repr(value)]
        case Iterator() if type(value).__module__ == "builtins":
            parts = [value.__reduce__()]
        case _:
            parts = [getattr(value, "__dict__", {}), *_of_class(type(value), value)]
    return parts


def _of_class(kind: type, value: Any) -> list[Any]:
    """Functions and plain attributes of a user's class, and the slots of `value`."""
    if _is_library(kind.__module__):
        return []
    slots = [getattr(value, name, None) for name in getattr(kind, "__slots__", ())]
    return [*slots, *(v for v in vars(kind).values() if isinstance(v, (FunctionType, *PLAIN)))]


def _is_library(module: str) -> bool:
    name = module.split(".", maxsplit=1)[0]
    return name in LIBRARIES or name in sys.stdlib_module_names - {"__main__"}


def _of_function(function: FunctionType) -> list[Any]:
    if _is_library(function.__module__ or ""):
        return []
    cells = [part for cell in function.__closure__ or () for part in _contents(cell)]
    names = set(_names(function.__code__))
    named = [function.__globals__[name] for name in sorted(names) if name in function.__globals__]
    return [*cells, function.__defaults__, function.__kwdefaults__, function.__dict__, *named]


def _names(code: CodeType) -> Iterator[str]:
    """Global names in a function and in the functions defined in it."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)


def _contents(cell: CellType) -> list[Any]:
    try:
        return [cell.cell_contents]
    except ValueError:
        # Not assigned yet.
        return []
