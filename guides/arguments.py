"""Checks of the options of guides, families and encoders: NumPy's numbers become Python's, or an error names the option."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from math import inf, isfinite
from numbers import Integral, Real
from typing import Any

import numpy as np
from torch import Tensor, nn

__all__ = ["MAX_COUNT", "count", "counts", "flag", "maker", "number", "program"]

MAX_COUNT = 10**9
"""Largest number of dimensions, steps or draws that is taken."""


def count(name: str, value: Any, *, least: int = 1) -> int:
    """`value`, Python's or NumPy's, as an integer from `least` to `MAX_COUNT`.

    Raises:
        TypeError: if it is not an integer, such as a boolean, a fraction or a string.
        ValueError: if it is out of range.
    """
    if not isinstance(value, Integral) or isinstance(value, bool | np.bool_):
        raise TypeError(f"{name} must be an integer, but is {value!r}.")
    found = int(value)
    if not least <= found <= MAX_COUNT:
        raise ValueError(f"{name} must be at least {least} and at most {MAX_COUNT}, but is {found}.")
    return found


def counts(name: str, values: Any, *, empty: bool = False) -> tuple[int, ...]:
    """A sequence of integers from 1 as a tuple, `empty` or not; raises as `count`."""
    is_row = values.ndim == 1 if isinstance(values, np.ndarray) else isinstance(values, Sequence)
    if not is_row or isinstance(values, str | bytes | Tensor):
        raise TypeError(f"{name} must be a sequence of integers, but is {values!r}.")
    found = tuple(count(f"{name}[{i}]", value, least=0) for i, value in enumerate(values))
    if 0 in found or not (found or empty):
        raise ValueError(f"{name} must be positive, {'' if empty else 'at least one, '}but are {found}.")
    return found


def number(name: str, value: Any, *, above: float = -inf, below: float = inf) -> float:
    """`value`, Python's or NumPy's, as a finite float inside the open interval (above, below).

    Raises:
        TypeError: if it is not a real number.
        ValueError: if it is out of range.
    """
    if not isinstance(value, Real) or isinstance(value, bool | np.bool_):
        raise TypeError(f"{name} must be a number, but is {value!r}.")
    try:
        found = float(value)
    except OverflowError:
        found = inf
    if not (isfinite(found) and above < found < below):
        limits = "positive and finite" if (above, below) == (0, inf) else f"between {above:g} and {below:g}"
        raise ValueError(f"{name} must be {limits}, but is {value}.")
    return found


def flag(name: str, value: Any) -> bool:
    """`value`, Python's or NumPy's, as a boolean; raises a TypeError for anything else."""
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"{name} must be True or False, but is {value!r}.")
    return bool(value)


def maker(name: str, value: Any) -> Callable[[], nn.Module]:
    """`value` if it can be called to make a module; else raises a TypeError."""
    if not callable(value) or isinstance(value, nn.Module):
        raise TypeError(f"{name} must make a module when it is called, such as torch.nn.Tanh, but is {value!r}.")
    return value


def program(name: str, value: Any) -> Callable[..., Any]:
    """`value` if it is a Pyro program; raises a TypeError for what cannot be called, or for a class."""
    if isinstance(value, type):
        raise TypeError(f"{name} must be a Pyro program, but is the class {value.__name__}: pass an instance.")
    if not callable(value):
        raise TypeError(f"{name} must be a Pyro program, which can be called, but is {value!r}.")
    try:
        inspect.signature(value.forward if isinstance(value, nn.Module) else value)
    except (TypeError, ValueError):
        raise TypeError(f"{name} must be a Pyro program with named arguments, but {value!r} tells none.") from None
    return value
