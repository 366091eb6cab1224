"""Checks of arguments: NumPy's numbers become Python's, numbers and arrays become tensors, or an error says what is wrong."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import inf, isfinite
from numbers import Real
from operator import index
from typing import Any

import numpy as np
import torch
from pyro.distributions import constraints, is_validation_enabled
from torch import Tensor, nn
from torch.distributions import Distribution

__all__ = [
    "MAX_COUNT",
    "MAX_SEED",
    "as_integer",
    "as_number",
    "as_tensor",
    "check_dense",
    "check_event",
    "check_rows",
    "count",
    "counts",
    "flag",
    "instance",
    "is_integer",
    "is_number",
    "maker",
    "matrix",
    "naming",
    "number",
    "positive",
    "real",
    "seed_of",
    "shown",
    "vector",
]

MAX_COUNT = 10**9
"""Largest number of rows, draws, steps or dimensions that is taken: no computation here would end with more."""
MAX_SEED = 2**64 - 1
"""Largest seed."""
MAX_SHOWN = 80
"""Characters of a value that a message shows."""


def count(name: str, value: Any, *, least: int = 1) -> int:
    """`value`, Python's or NumPy's, as an integer from `least` to `MAX_COUNT`.

    Raises:
        TypeError: if it is not an integer, such as a boolean, a fraction or a string.
        ValueError: if it is out of range.
    """
    if not is_integer(value):
        raise TypeError(f"{name} must be an integer, but is {shown(value)}.")
    found = as_integer(name, value)
    if found < least:
        raise ValueError(f"{name} must be at least {least}, but is {found}.")
    return found


def number(name: str, value: Any, *, above: float = -inf, below: float = inf) -> float:
    """`value`, Python's or NumPy's, as a finite float inside the open interval (above, below).

    Raises:
        TypeError: if it is not a real number.
        ValueError: if it is out of range.
    """
    if not is_number(value):
        raise TypeError(f"{name} must be a number, but is {shown(value)}.")
    found = as_number(name, value)
    if not found > above:
        raise ValueError(f"{name} must be {'positive and finite' if above == 0 else f'above {above:g}'}, but is {found}.")
    if not found < below:
        raise ValueError(f"{name} must be below {below:g}, but is {found}.")
    return found


def flag(name: str, value: Any) -> bool:
    """`value`, Python's or NumPy's, as a boolean; raises a TypeError for anything else."""
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"{name} must be True or False, but is {shown(value)}.")
    return bool(value)


def counts(name: str, values: Any, *, empty: bool = False) -> tuple[int, ...]:
    """A sequence of integers from 1 as a tuple, `empty` or not; raises as `count`."""
    is_row = values.ndim == 1 if isinstance(values, Tensor | np.ndarray) else isinstance(values, Sequence)
    if not is_row or isinstance(values, str | bytes):
        raise TypeError(f"{name} must be a sequence of integers, but is {shown(values)}.")
    found = tuple(count(f"{name}[{i}]", value, least=0) for i, value in enumerate(values))
    if 0 in found or not (found or empty):
        raise ValueError(f"{name} must be positive, {'' if empty else 'at least one, '}but are {found}.")
    return found


@contextmanager
def naming(what: str) -> Iterator[None]:
    """Turns any error inside, of an object that the user gave, into a TypeError that says which object failed."""
    try:
        yield
    except Exception as error:
        raise TypeError(f"{what} failed: {type(error).__name__}: {str(error) or 'without a message'}") from error


def maker(name: str, value: Any) -> Any:
    """`value` if it can be called without arguments to make a part of a net; else raises a TypeError."""
    if not callable(value) or isinstance(value, nn.Module):
        raise TypeError(f"{name} must make a module when it is called, such as torch.nn.Tanh, but is {shown(value)}.")
    return value


def seed_of(name: str, value: Any) -> int:
    """`value` as a seed, an integer from 0 to `MAX_SEED`; raises as `count`."""
    if not is_integer(value):
        raise TypeError(f"{name} must be an integer, but is {shown(value)}.")
    found = as_integer(name, value, most=MAX_SEED)
    if found < 0:
        raise ValueError(f"{name} must be from 0 to 2**64 - 1, but is {found}.")
    return found


def instance(name: str, value: Any, kind: type, *, example: str) -> None:
    """Raises a TypeError unless `value` is an instance of `kind`; `example` shows one."""
    if not isinstance(value, kind):
        raise TypeError(f"{name} must be a {kind.__name__} such as {example}, but is {shown(value)}.")


def is_integer(value: Any) -> bool:
    """Whether `value` is one integer: Python's, NumPy's, or a tensor of shape (). Booleans are not."""
    if isinstance(value, Tensor | np.ndarray) and (value.ndim or value.dtype in (torch.bool, np.bool_)):
        return False
    if isinstance(value, bool | np.bool_):
        return False
    try:
        index(value)
    except (TypeError, RuntimeError, NotImplementedError):
        return False
    return True


def is_number(value: Any) -> bool:
    """Whether `value` is one real number: Python's, NumPy's, or a tensor of shape () without a graph. Booleans are not."""
    if isinstance(value, Tensor):
        return value.dim() == 0 and value.is_floating_point() and not (value.requires_grad or value.is_meta)
    return is_integer(value) or (isinstance(value, Real) and not isinstance(value, bool | np.bool_))


def as_integer(name: str, value: Any, *, most: int = MAX_COUNT) -> int:
    """What `is_integer` accepts as an integer; raises a ValueError above `most`, in size."""
    found = index(value)
    if abs(found) > most:
        raise ValueError(f"{name} must be at most {most}, but is {shown(found)}.")
    return found


def as_number(name: str, value: Any) -> float:
    """What `is_number` accepts as a float; raises a ValueError if it is not finite."""
    try:
        found = float(value)
    except OverflowError:
        found = inf
    if not isfinite(found):
        raise ValueError(f"{name} must be a finite number, but is {shown(value)}.")
    return found


def as_tensor(name: str, value: Any, *, dtype: torch.dtype, floating: bool = False) -> Tensor:
    """An array or a list of numbers as a tensor. A tensor is returned as it is.

    Args:
        name: for the message.
        value: what to convert.
        dtype: of real numbers, which have no precision of their own in a list; integers become int64.
        floating: whether integers take `dtype` too.

    Raises:
        TypeError: if it does not hold numbers of one kind.
        ValueError: if it is ragged, masked, or too large for `dtype`.
    """
    if isinstance(value, Tensor):
        return value
    if isinstance(value, list | tuple) and value and all(isinstance(v, Tensor) and v.shape == value[0].shape for v in value):
        return torch.stack(list(value))
    try:
        array = np.asarray(value)
    except (ValueError, TypeError, RuntimeError):
        raise ValueError(f"{name} must be an array of numbers with rows of one length, but is {shown(value)}.") from None
    if array.dtype.kind not in "fiu" + ("" if floating else "b"):
        raise TypeError(f"{name} must hold real numbers, but is {shown(value)}.")
    if isinstance(value, np.ma.MaskedArray) and np.ma.is_masked(value):
        raise ValueError(f"{name} has masked entries, which would be lost: pass x.filled(...) and the mask apart.")
    if array.dtype.kind == "b":
        return torch.from_numpy(array.copy())
    wanted = dtype if array.dtype.kind == "f" or floating else torch.int64
    if array.dtype.kind == "u" and array.size and array.max() > torch.iinfo(torch.int64).max:
        raise ValueError(f"{name} holds {array.max()}, beyond int64.")
    found = torch.from_numpy(np.array(array, dtype=np.float64 if wanted.is_floating_point else np.int64))
    converted = found.to(wanted)
    if wanted.is_floating_point and bool((found.isfinite() & ~converted.isfinite()).any()):
        raise ValueError(f"{name} holds {found.abs().max().item():g}, beyond {wanted}: use float64 throughout.")
    return converted


def check_dense(name: str, value: Tensor) -> None:
    """Raises a TypeError unless the tensor holds values, one for each entry, that are not complex."""
    kind = (
        "is on the device meta and has no values"
        if value.is_meta
        else "is complex"
        if value.is_complex()
        else "is quantised"
        if value.is_quantized
        else "is sparse or nested"
        if value.layout is not torch.strided or value.is_nested
        else ""
    )
    if kind:
        raise TypeError(f"{name} {kind}, but a dense tensor of real numbers is needed: convert it first.")


def shown(value: Any) -> str:
    """A value for a message, in a few words."""
    if isinstance(value, Tensor | np.ndarray) and value.ndim:
        return f"{'a tensor' if isinstance(value, Tensor) else 'an array'} of shape {tuple(value.shape)}, {value.dtype}"
    if isinstance(value, type):
        return f"the class {value.__name__}"
    try:
        text = repr(value)
    except Exception:
        text = object.__repr__(value)
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}…"


def real(name: str, value: Tensor | float, shape: tuple[int, ...], *, like: Tensor | None = None) -> Tensor:
    """`value` as a finite floating tensor, broadcast to `shape`; a Parameter is returned as it is.

    A number, an array or a list takes the dtype of `like`, or the default.

    Raises:
        TypeError: if `value` holds integers or complex numbers.
        ValueError: if it is not finite or does not broadcast to `shape`.
    """
    if not isinstance(value, Tensor):
        dtype = torch.get_default_dtype() if like is None else like.dtype
        if isinstance(value, bool) or not (is_number(value) or isinstance(value, np.ndarray | list | tuple)):
            raise TypeError(f"{name} must hold real numbers, but is {shown(value)}.")
        value = as_tensor(name, value, dtype=dtype, floating=True)
    check_dense(name, value)
    if not value.is_floating_point():
        raise TypeError(f"{name} must hold real numbers, but is {value.dtype}: convert it with torch.as_tensor(...).float().")
    if not value.isfinite().all():
        raise ValueError(f"{name} must be finite, but holds {value[~value.isfinite()][0].item()}.")
    if isinstance(value, torch.nn.Parameter):
        if tuple(value.shape) != shape:
            raise ValueError(f"{name} is a Parameter of shape {tuple(value.shape)}, but shape {shape} is needed.")
        return value
    try:
        return value.expand(shape).clone()
    except RuntimeError:
        raise ValueError(f"{name} has shape {tuple(value.shape)}, which does not broadcast to {shape}.") from None


def positive(name: str, value: Tensor | float, shape: tuple[int, ...], *, like: Tensor | None = None) -> Tensor:
    """`value` as in `real`, with every entry greater than zero.

    Raises:
        TypeError, ValueError: as `real`, and if an entry is not positive.
    """
    value = real(name, value, shape, like=like)
    if not (value > 0).all():
        raise ValueError(f"{name} must be positive, but holds {value.min().item():g}.")
    return value


def matrix(name: str, value: Tensor, rows: str, columns: str) -> Tensor:
    """`value` as in `real`, of shape (rows, columns), both at least 1; `rows` and `columns` are symbols for the message.

    Raises:
        TypeError, ValueError: as `real`, and if `value` is not a matrix or is empty.
    """
    if isinstance(value, np.ndarray | list):
        value = as_tensor(name, value, dtype=torch.get_default_dtype(), floating=True)
    if not isinstance(value, Tensor) or value.dim() != 2 or value.numel() == 0:
        got = f"has shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"is {type(value).__name__}"
        expected = f"a tensor of shape ({rows}, {columns}) with {rows} > 0 and {columns} > 0"
        raise ValueError(f"{name} must be {expected}, but {got}.")
    return real(name, value, tuple(value.shape))


def vector(name: str, value: Any, rows: str) -> Tensor:
    """`value` as in `real`, of shape (rows,), at least 1; `rows` is a symbol for the message."""
    if isinstance(value, np.ndarray | list):
        value = as_tensor(name, value, dtype=torch.get_default_dtype(), floating=True)
    if not isinstance(value, Tensor) or value.dim() != 1 or len(value) == 0:
        raise ValueError(f"{name} must be a tensor of shape ({rows},) with {rows} > 0, but is {shown(value)}.")
    return real(name, value, tuple(value.shape))


def check_event(q: Distribution, shape: tuple[int, ...], *, owner: str) -> None:
    """Raises unless a draw from `q` has the shape of the latent h."""
    if tuple(q.event_shape) != shape:
        raise ValueError(f"{owner}: q is over vectors of shape {tuple(q.event_shape)}, but h has shape {shape}.")


def check_rows(x: Tensor, shape: tuple[int, ...], support: constraints.Constraint, dtype: torch.dtype, *, owner: str) -> None:
    """Raises unless `x` is (N, *shape) of `dtype` with N > 0 and every entry in `support`; names the first bad row."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{owner}: x must be a torch.Tensor, not {type(x).__name__}: use torch.as_tensor(x).")
    check_dense(f"{owner}: x", x)
    if not x.is_floating_point():
        raise TypeError(f"{owner}: x holds {x.dtype}, but real numbers are needed: use x.to({dtype}).")
    if x.dim() == 0 or len(x) == 0:
        raise ValueError(f"{owner}: x is empty (shape {tuple(x.shape)}): give at least one row.")
    if tuple(x.shape[1:]) != shape:
        expected = ", ".join(["N", *map(str, shape)])
        raise ValueError(f"{owner}: x has shape {tuple(x.shape)}, but ({expected}) is expected.")
    if x.dtype != dtype:
        raise TypeError(f"{owner}: x is {x.dtype}, the model {dtype}: convert one, by x.to({dtype}) or model.to({x.dtype}).")
    if not is_validation_enabled():
        # A fit has checked the values before its first step, and a step that is captured may not branch on values.
        return
    for wrong, what in ((~x.isfinite(), "is not finite"), (~support.check(x), f"lies outside the support ({support})")):
        rows = wrong.reshape(len(x), -1).any(-1).nonzero().flatten()
        if len(rows):
            row = int(rows[0])
            value = x[row][wrong[row]].flatten()[0].item()
            remedy = _range(x, support) if isfinite(value) else ""
            raise ValueError(
                f"{owner}: row {row} of x holds {value}, which {what} ({len(rows)} such rows of {len(x)}).{remedy}"
            )


def _range(x: Tensor, support: constraints.Constraint) -> str:
    """The range of the values, and the usual way to bring such data into the support, as sentences of a message."""
    finite = x[x.isfinite()]
    if not len(finite):
        return ""
    low, high = finite.min().item(), finite.max().item()
    seen = f" The values range from {low:g} to {high:g}"
    if support is constraints.boolean and low >= 0 and high <= 1:
        return (
            seen + ": draw x as Bernoulli(x) (models.images.binarise), threshold it, or choose an observation of grey values."
        )
    if low >= 0 and high > 1 and bool(support.check(torch.zeros_like(finite[:1])).all()):
        return seen + f": divide by {high:g} if that is the largest possible value, and binarise if x must be binary."
    return seen + "."
