"""Finds state that a program keeps from one call to the next, other than parameters, wherever Python lets it be read."""

from __future__ import annotations

import os
import random
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyro
from torch import Tensor

from ..errors import HiddenStateError
from .contents import content
from .reachable import Unreadable, parts

__all__ = ["Memory", "memory"]

MAX_OBJECTS = 300_000
"""Objects that are looked at. A program that reaches more cannot be searched in a second or two."""


class Memory:
    """What can be read from a program at one moment. Two are equal if nothing has changed between them.

    Attributes:
        unreadable: the first object whose state cannot be read, with its place; None if there is none.
    """

    def __init__(self) -> None:
        self.unreadable: str | None = None
        self._contents: list[Any] = []
        self._places: list[str] = []

    def add(self, found: Any, place: str) -> None:
        """Adds the content of one object."""
        self._contents.append(found)
        self._places.append(place)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Memory) and self._contents == other._contents

    __hash__ = None  # type: ignore[assignment]

    def require_unchanged(self, before: Memory) -> None:
        """Compares with an earlier moment.

        Raises:
            HiddenStateError: if something has changed, or if an object cannot be read.
        """
        if self == before:
            if self.unreadable is not None:
                raise HiddenStateError(f"it may keep state between calls in {self.unreadable}, which cannot be read")
            return
        pairs = zip(self._contents, before._contents, self._places, strict=False)
        place = next((place for ours, theirs, place in pairs if ours != theirs), None)
        raise HiddenStateError("it keeps state between calls" + (f", in {place}" if place else ""))


def memory(*programs: Any, learned: Sequence[Tensor] = (), **named: Any) -> Memory:
    """Reads all that the programs can reach, and the states of Python's and NumPy's generators.

    The search follows closures, defaults, the globals and attributes that a function names, attributes of objects, classes
    and modules, and containers; it reads buffers, iterators, generators and objects written in C by the protocols that
    Python has for them. An object that offers none is unreadable. If the result is equal before and after a call, and
    nothing is unreadable, the call has left nothing for the next one, such as a count of calls that anneals a scale.

    Args:
        programs, named: where to search.
        learned: the parameters. Tensors that share memory with one, such as its initial value, are ignored.
    """
    found = Memory()
    if not programs and not named:
        return found
    state: Any = np.random.get_state()  # noqa: NPY002 - what a program may draw from
    _, words, *rest = state
    found.add((random.getstate(), words.tobytes(), rest), "Python's or NumPy's random generator")
    roots = {**{f"program {k}": program for k, program in enumerate(programs)}, **named}
    roots |= {"the param store": _of_store(), "os.environ": os.environ}
    with warnings.catch_warnings():
        # Some iterators warn that they will not be copied by a later Python.
        warnings.simplefilter("ignore")
        _read(found, roots, {_place(value) for value in learned})
    return found


def _read(found: Memory, roots: Mapping[str, Any], moving: set[int]) -> None:
    own = {module.partition(".")[0] for root in roots.values() for module in _modules(root)}
    waiting = [(value, name) for name, value in list(roots.items())[::-1]]
    seen: dict[int, int] = {}
    kept: list[Any] = []
    while waiting:
        value, place = waiting.pop()
        if isinstance(value, Tensor):
            found.add(_tensor(value, moving), place)
            continue
        if (atom := content(value)) is not None:
            found.add(atom, place)
            continue
        if id(value) in seen:
            found.add((type(value), seen[id(value)]), place)
            continue
        # Kept alive until the end, since a freed object's id may be reused.
        seen[id(value)] = len(kept)
        kept.append(value)
        found.add((type(value), None), place)
        if len(kept) > MAX_OBJECTS:
            found.unreadable = found.unreadable or f"more than {MAX_OBJECTS} objects"
            return
        try:
            inside = list(parts(value, place, own))
        except Unreadable:
            found.unreadable = found.unreadable or f"{place} (a {type(value).__qualname__})"
            continue
        waiting.extend(reversed(inside))


def _of_store() -> dict[str, Any]:
    """What the param store holds besides parameters to learn: these belong to the fit, and new ones may be met."""
    store = vars(pyro.get_param_store())
    fixed = {name: value for name, value in store["_params"].items() if not value.requires_grad}
    return {**{name: value for name, value in store.items() if name not in _LEARNED}, "_params": fixed}


_LEARNED = ("_params", "_constraints", "_param_to_name")


def _modules(root: Any) -> Iterator[str]:
    """Where a program and its class are written."""
    for thing in (root, type(root), getattr(root, "__func__", None)):
        if isinstance(name := getattr(thing, "__module__", None), str):
            yield name


def _tensor(value: Tensor, moving: set[int]) -> Any:
    if _place(value) in moving or (value.requires_grad and not value.is_leaf):
        # A result of this step that is kept differs in every step: a comparison with Pyro finds out if it is used.
        return Tensor
    return Tensor, value.shape, content(value.detach())


def _place(value: Tensor) -> int:
    try:
        return value.untyped_storage().data_ptr()
    except (NotImplementedError, RuntimeError):
        return -1
