"""Arguments of public functions: each is converted by its annotation, or refused with a message that names it."""

from __future__ import annotations

import collections.abc
import inspect
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from functools import cache, partial, wraps
from pathlib import Path
from typing import Any, NamedTuple, ParamSpec, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from models import Model
from models.arguments import as_integer, as_number, as_tensor, check_dense, flag, is_integer, is_number, seed_of, shown

from .bound import unwrap

__all__ = ["check_fields", "checked"]

SEEDS = ("seed", "seeds[]")
"""Arguments that hold a seed, by name; `[]` marks a member of a sequence."""
PROGRAMS = ("model", "guide", "pairs[][]")
"""Arguments that hold an instance: their class alone is callable too, but is no Pyro program."""

P = ParamSpec("P")
R = TypeVar("R")


def checked(function: Callable[P, R]) -> Callable[P, R]:
    """Converts the arguments of a public function by its annotations before each call; in an error, names the argument.

    NumPy's numbers become Python's, arrays and lists become tensors where a tensor is taken. An array or a list of reals has
    no precision of its own: it takes the dtype of the model, or the default dtype. What cannot be converted is refused: a
    boolean or a fraction for an integer, NaN for a number, tensors that are complex, sparse, without values (on the device
    "meta") or part of a graph, and an object of another kind than annotated.

    Raises:
        TypeError: for an argument of the wrong kind, or a call that does not fit the signature.
        ValueError: for a value outside its range.
    """
    signature = inspect.signature(function)
    owner = function.__qualname__.removesuffix(".__init__")

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            bound = signature.bind(*args, **kwargs)
        except TypeError as error:
            takes = ", ".join(name for name in signature.parameters if name != "self")
            raise TypeError(f"{owner}: {error}; it takes {takes}.") from None
        hints = _hints(function)
        for name, value in bound.arguments.items():
            if name in hints and signature.parameters[name].kind is not inspect.Parameter.VAR_KEYWORD:
                bound.arguments[name] = _converted(owner, name, value, hints[name], bound.arguments)
        return function(*bound.args, **bound.kwargs)

    return call


def check_fields(owner: Any) -> None:
    """Converts the fields of a dataclass, or raises, as `checked` does with arguments. Call it first in `__post_init__`."""
    assert is_dataclass(owner)
    kind: Any = type(owner)
    values = {field.name: getattr(owner, field.name) for field in fields(owner)}
    hints = _hints(kind)
    for name, value in values.items():
        object.__setattr__(owner, name, _converted(type(owner).__name__, name, value, hints[name], values))


class _Kind(NamedTuple):
    """One alternative of an annotation."""

    expected: str
    """What is expected, as the end of a sentence."""
    matches: Callable[[Any], bool]
    convert: Callable[[str, Any], Any]
    """Converts a value that matches; raises a ValueError that starts with the given name."""


@cache
def _hints(owner: Any) -> dict[str, Any]:
    hints = typing.get_type_hints(owner)
    hints.pop("return", None)
    return hints


def _converted(owner: str, name: str, value: Any, hint: Any, others: Mapping[str, Any]) -> Any:
    title = f"{owner}: {name}"
    alternatives = [_kind(one, name, others) for one in _alternatives(hint)]
    for kind in alternatives:
        if kind.matches(value):
            return kind.convert(title, value)
    expected = " or ".join(dict.fromkeys(kind.expected for kind in alternatives if kind is not _PLAIN[type(None)]))
    advice = f": pass an instance, {value.__name__}()" if isinstance(value, type) and not _takes_classes(hint) else ""
    of, is_ = ("each of ", "holds") if name.endswith("[]") else ("", "is")
    raise TypeError(f"{owner}: {of}{name.replace('[]', '')} must be {expected}, but {is_} {shown(value)}{advice}.")


def _alternatives(hint: Any) -> tuple[Any, ...]:
    return typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)


def _kind(hint: Any, name: str, others: Mapping[str, Any]) -> _Kind:
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if hint is int and name in SEEDS:
        return _SEED
    if hint in _PLAIN:
        return _PLAIN[hint]
    if hint is Any and name in PROGRAMS:
        return _function(object, name)
    if hint is Tensor:
        return _tensor(others)
    return _of_objects(hint, name) if not inner else _of_parts(origin, inner, name, others)


def _of_objects(hint: Any, name: str) -> _Kind:
    if hint is Callable or getattr(hint, "_is_protocol", False):
        return _function(object, name) if hint is Callable else _protocol(hint)
    if hint is not Any and isinstance(hint, type):
        return _Kind(_article(hint.__name__), lambda v: isinstance(unwrap(v), hint), _as_it_is)
    return _Kind("anything", lambda _: True, _as_it_is)


def _of_parts(origin: Any, inner: tuple[Any, ...], name: str, others: Mapping[str, Any]) -> _Kind:
    if origin is tuple and inner == (Any, ...):
        return _Kind("a tuple of the model's arguments", _is_tuple, lambda title, value: _arguments(title, value, others))
    if origin in (dict, collections.abc.Mapping):
        return _mapping(inner[1], name, others)
    if origin in (tuple, collections.abc.Sequence, collections.abc.Iterable):
        return _sequence(inner[0], name, others)
    if origin is type:
        base = inner[0]
        return _Kind(f"a subclass of {base.__name__}", lambda v: _is_concrete(v, base), _as_it_is)
    return _function(inner[1], name)


def _is_concrete(value: Any, base: type) -> bool:
    return isinstance(value, type) and issubclass(value, base) and not inspect.isabstract(value)


def _protocol(hint: Any) -> _Kind:
    """A protocol: a plain function that can be called so, or an object with all that the protocol declares."""
    wanted = {name for base in hint.__mro__ for name in inspect.get_annotations(base)}

    def matches(value: Any) -> bool:
        if isinstance(value, type | nn.Module) or not callable(value):
            return False
        return inspect.isroutine(value) or isinstance(value, partial) or all(hasattr(value, name) for name in wanted)

    return _Kind(_article(hint.__name__), matches, _as_it_is)


def _takes_classes(hint: Any) -> bool:
    return any(typing.get_origin(one) is type for one in _alternatives(hint))


def _function(returned: Any, name: str) -> _Kind:
    """What can be called. A class can be, too, and must then be of the kind that the annotation says is returned."""
    if name in PROGRAMS:
        return _Kind("a Pyro program, which can be called", lambda v: callable(v) and not isinstance(v, type), _as_it_is)
    base = returned if isinstance(returned, type) else object
    what = f"a function that returns {_article(base.__name__)}" if base is not object else "a function"
    return _Kind(what, lambda v: callable(v) and (not isinstance(v, type) or issubclass(v, base)), _as_it_is)


def _as_it_is(title: str, value: Any) -> Any:
    del title
    return value


def _article(noun: str) -> str:
    return f"{'an' if noun[0] in 'AEIOU' else 'a'} {noun}"


def _is_tuple(value: Any) -> bool:
    return isinstance(value, tuple)


def _is_sequence(value: Any) -> bool:
    return value.ndim == 1 if isinstance(value, Tensor | np.ndarray) else isinstance(value, Sequence)


def _sequence(hint: Any, name: str, others: Mapping[str, Any]) -> _Kind:
    def convert(title: str, value: Any) -> Any:
        owner, _, _ = title.partition(": ")
        members = [_converted(owner, f"{name}[]", member, hint, others) for member in value]
        return value if isinstance(value, range) else tuple(members)

    what = f"a sequence of {_plural(hint)}"
    return _Kind(what, lambda v: _is_sequence(v) and not isinstance(v, str | bytes), convert)


def _plural(hint: Any) -> str:
    return {int: "integers", float: "numbers"}.get(hint, "pairs" if typing.get_origin(hint) is tuple else "objects")


def _mapping(hint: Any, name: str, others: Mapping[str, Any]) -> _Kind:
    def convert(title: str, value: Any) -> Any:
        owner, _, _ = title.partition(": ")
        for key in value:
            if not isinstance(key, str):
                raise TypeError(f"{title} must have names as keys, but one is {shown(key)}.")
        return {key: _converted(owner, f"{name}[{key!r}]", member, hint, others) for key, member in value.items()}

    return _Kind("a mapping from names", lambda v: isinstance(v, Mapping), convert)


def _tensor(others: Mapping[str, Any]) -> _Kind:
    def convert(title: str, value: Any) -> Tensor:
        found = as_tensor(title, value, dtype=_dtype(others), floating=_is_ours(others))
        if found.dtype is torch.bool:
            raise TypeError(
                f"{title} holds booleans, but real numbers are needed: use {title.rsplit(': ', maxsplit=1)[-1]}.float()."
            )
        return _dense(title, found)

    return _Kind("a tensor, an array or a list of numbers", _is_tensor_like, convert)


def _is_tensor_like(value: Any) -> bool:
    if isinstance(value, np.generic):
        return False
    return isinstance(value, Tensor | list) or (
        type(value).__module__.split(".")[0] in ("numpy", "pandas") and hasattr(value, "__array__")
    )


def _arguments(title: str, values: tuple[Any, ...], others: Mapping[str, Any]) -> tuple[Any, ...]:
    """The arguments of a model: tensors are checked, NumPy's arrays converted, other objects left to the model."""
    return tuple(_argument(f"{title}[{position}]", value, len(values), others) for position, value in enumerate(values))


def _argument(title: str, value: Any, count: int, others: Mapping[str, Any]) -> Any:
    if isinstance(value, Tensor):
        if value.dtype is torch.bool and count == 1:
            raise TypeError(f"{title} holds booleans, but real numbers are needed: use .float().")
        return _dense(title, value)
    if isinstance(value, list) or not _is_tensor_like(value) or not getattr(value, "ndim", 0):
        return value
    return _dense(title, as_tensor(title, value, dtype=_dtype(others), floating=_is_ours(others)))


def _dense(title: str, value: Tensor) -> Tensor:
    check_dense(title, value)
    if value.requires_grad:
        raise ValueError(f"{title} carries a graph (it requires a gradient), but data are constants: use .detach().")
    return value


def _program(others: Mapping[str, Any]) -> Any:
    """The model that the other arguments name, through a fit or a guide if need be; None if there is none."""
    holder: Any = next((others[name] for name in ("model", "fit", "guide") if name in others), None)
    return unwrap(getattr(unwrap(holder), "model", holder))


def _is_ours(others: Mapping[str, Any]) -> bool:
    return isinstance(_program(others), Model)


def _dtype(others: Mapping[str, Any]) -> torch.dtype:
    """The dtype for real numbers without one of their own: that of the model's tensors, or the default."""
    model = _program(others)
    tensors = (*model.buffers(), *model.parameters()) if isinstance(model, nn.Module) else ()
    return next((t.dtype for t in tensors if t.is_floating_point()), torch.get_default_dtype())


_SEED = _Kind("an integer", is_integer, seed_of)
_PLAIN: dict[Any, _Kind] = {
    int: _Kind("an integer", is_integer, as_integer),
    float: _Kind("a number", is_number, as_number),
    bool: _Kind("True or False", lambda v: isinstance(v, bool | np.bool_), flag),
    str: _Kind("a string", lambda v: isinstance(v, str), _as_it_is),
    Path: _Kind("a path", lambda v: isinstance(v, Path), _as_it_is),
    type(None): _Kind("None", lambda v: v is None, _as_it_is),
}
