"""The objects that an object refers to, by which a search for hidden state goes on."""

from __future__ import annotations

import _thread
import functools
import gc
import logging
import sys
import sysconfig
import threading
import types
import weakref
from collections import deque
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any

import numpy as np
import torch

__all__ = ["Unreadable", "parts"]

Part = tuple[Any, str]

_SUITE = ("inference", "models", "guides")
_ROOT = str(Path(__file__).parents[3])
_INSTALLED = tuple({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")})
_TRANSPARENT = (
    property,
    staticmethod,
    classmethod,
    types.CellType,
    types.MappingProxyType,
    functools.partial,
    types.MethodType,
)
_LOCKS = (_thread.LockType, type(threading.RLock()), logging.Logger, logging.Handler)
"""They hold nothing that a model computes with."""
_NATIVE = (object, dict, list, tuple, set, frozenset, deque, int, float, str, bytes, complex, torch._C.TensorBase)
"""Types whose content is read otherwise; a class made of them has its state in attributes and slots."""
_DESCRIPTORS = (
    types.GetSetDescriptorType,
    types.MemberDescriptorType,
    types.WrapperDescriptorType,
    types.MethodDescriptorType,
    types.ClassMethodDescriptorType,
    types.MethodWrapperType,
)
MAX_SORTED = 10_000
"""Entries of a set that are put in order."""


class Unreadable(Exception):  # noqa: N818 - no error for the user
    """The state of this object cannot be read."""


def parts(value: Any, place: str, own: set[str]) -> Iterator[Part]:
    """The objects that `value` refers to, with their places, always in the same order.

    Args:
        value: any object.
        place: where it was found, for messages.
        own: packages that belong to the user even if they are installed.

    Raises:
        Unreadable: if it is written in C and offers no protocol to read its state.
    """
    if isinstance(value, (*_DESCRIPTORS, *_LOCKS)):
        return
    match value:
        case ModuleType():
            if not _is_library(value.__name__, own):
                yield from _attributes(vars(value), f"module {value.__name__}")
        case type():
            if not _is_library(value.__module__, own):
                yield from _attributes(vars(value), f"class {value.__qualname__}")
                yield type(value), f"the class of {value.__qualname__}"
        case FunctionType():
            yield from _of_function(value, own)
        case types.BuiltinFunctionType() if isinstance(value.__self__, ModuleType):
            raise Unreadable
        case _ if isinstance(value, _TRANSPARENT):
            yield from _of_referents(value, place)
        case weakref.ref():
            yield value(), place
        case types.GeneratorType():
            yield from _of_generator(value, place, own)
        case ContextVar() | threading.local():
            yield value.get(None) if isinstance(value, ContextVar) else vars(value), place
        case _:
            yield from _of_object(value, place, own)


def _of_referents(value: Any, place: str) -> Iterator[Part]:
    return ((part, place) for part in gc.get_referents(value) if not isinstance(part, type))


def _attributes(of: Any, owner: str) -> Iterator[Part]:
    """Attributes of a class or module of the user."""
    for name, value in list(of.items()):
        if not (name.startswith("__") and name.endswith("__")) and name != "_abc_impl":
            yield value, f"`{name}` of {owner}"


def _of_function(function: FunctionType, own: set[str]) -> Iterator[Part]:
    owner = f"function {function.__qualname__}"
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=False):
        try:
            yield cell.cell_contents, f"`{name}` of {owner}"
        except ValueError:
            # Not assigned yet.
            continue
    yield function.__defaults__, f"the defaults of {owner}"
    yield function.__kwdefaults__, f"the defaults of {owner}"
    yield vars(function), f"the attributes of {owner}"
    if not _is_library(function.__globals__.get("__name__") or "", own):
        yield from _named(function.__globals__, function.__code__, own)


def _named(scope: dict[str, Any], code: CodeType, own: set[str]) -> Iterator[Part]:
    """Globals and modules that a function names, and the attributes of libraries that it names."""
    names = sorted(set(_names(code)))
    for name in names:
        if name not in scope and name not in sys.modules:
            continue
        value = scope.get(name, sys.modules.get(name))
        yield value, f"global `{name}`"
        yield from _named_in(value, names, own, {id(value)})


def _named_in(library: Any, names: list[str], own: set[str], seen: set[int]) -> Iterator[Part]:
    if not isinstance(library, ModuleType | type):
        return
    where = library.__name__ if isinstance(library, ModuleType) else library.__module__
    if not _is_library(where, own):
        return
    attributes = vars(library)
    for name in names:
        value = attributes.get(name)
        if name not in attributes or id(value) in seen or isinstance(value, FunctionType):
            continue
        seen.add(id(value))
        yield value, f"`{name}` of {library.__name__}"
        yield from _named_in(value, names, own, seen)


def _names(code: CodeType) -> Iterator[str]:
    """Names of globals and attributes in a function and in the functions defined in it."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)


def _of_generator(value: Any, place: str, own: set[str]) -> Iterator[Part]:
    if value.gi_frame is None:
        return
    yield value.gi_frame.f_lasti, place
    for name, local in dict(value.gi_frame.f_locals).items():
        yield local, f"`{name}` of {place}"
    yield value.gi_yieldfrom, place
    if not _is_library(value.gi_frame.f_globals.get("__name__") or "", own):
        yield from _named(value.gi_frame.f_globals, value.gi_code, own)


def _of_object(value: Any, place: str, own: set[str]) -> Iterator[Part]:
    """Entries, attributes, slots and class of an object, and what it would be copied from if it is written in C."""
    kind = type(value)
    if isinstance(value, dict):
        for key, entry in list(value.items()):
            yield key, place
            yield entry, f"{key!r} of {place}" if type(key) is str else place
    elif isinstance(value, set | frozenset):
        entries = sorted(value, key=repr) if len(value) <= MAX_SORTED else [len(value), hash(frozenset(value))]
        yield from ((entry, place) for entry in entries)
    elif isinstance(value, list | tuple | deque):
        yield from ((entry, place) for entry in list(value))
    elif isinstance(value, np.ndarray):
        yield value.tolist(), place
    elif (native := _native(kind)) not in _NATIVE:
        yield from _copied(value, native, place)
    owner = f"a {kind.__qualname__}"
    library = _is_library(kind.__module__, own)
    for name, attribute in list((getattr(value, "__dict__", None) or {}).items()):
        if not (library and name.startswith("_cache")):
            yield attribute, f"`{name}` of {owner}"
    for name, slot in _slots(kind):
        try:
            yield slot.__get__(value), f"`{name}` of {owner}"
        except (AttributeError, TypeError):
            continue
    if not library:
        yield kind, place


def _copied(value: Any, native: type, place: str) -> Iterator[Part]:
    """What an object written in C says that a copy of it is made from."""
    if issubclass(native, BaseException):
        yield value.args, place
        return
    if hasattr(value, "cache_info"):
        yield value.cache_info(), place
        yield from _of_referents(value, place)
        return
    try:
        recipe = value.__reduce_ex__(2)
    except Exception as error:
        raise Unreadable from error
    if not isinstance(recipe, tuple):
        raise Unreadable
    for part in recipe[1:]:
        # Entries of a container that is rebuilt one by one come as an iterator.
        yield (list(part) if part in recipe[3:5] and part is not None else part), place


def _slots(kind: type) -> Iterator[tuple[str, Any]]:
    for base in kind.__mro__:
        for name, value in vars(base).items():
            if isinstance(value, types.MemberDescriptorType):
                yield name, value


def _native(kind: type) -> type:
    """The last class in the chain of bases with room for state that is neither an attribute nor a slot."""
    while kind not in _NATIVE and kind.__base__ is not None:
        base = kind.__base__
        room = sum(isinstance(value, types.MemberDescriptorType) for value in vars(kind).values())
        room += ("__dict__" in vars(kind)) + ("__weakref__" in vars(kind))
        if kind.__basicsize__ > base.__basicsize__ + 8 * room:
            break
        kind = base
    return kind


@functools.cache
def _library_root(root: str) -> bool:
    if root in sys.stdlib_module_names:
        return root != "__main__"
    path = getattr(sys.modules.get(root), "__file__", None) or ""
    return path.startswith(_INSTALLED) or (root in _SUITE and path.startswith(_ROOT))


def _is_library(module: Any, own: set[str]) -> bool:
    """Whether functions of this module are not searched, since they keep nothing that a model depends on."""
    root = module.partition(".")[0] if isinstance(module, str) else ""
    return _library_root(root) and (root not in own or root in (*_FIXED, *_SUITE) or root in sys.stdlib_module_names)


_FIXED = ("torch", "pyro", "numpy", "builtins", "functools", "os", "collections")
"""Libraries that stay libraries if a program itself is an object of theirs."""
