"""Checks of the arguments of models: numbers become tensors of the right shape, or an error says what is wrong."""

from __future__ import annotations

from math import isfinite

import torch
from pyro.distributions import constraints, is_validation_enabled
from torch import Tensor
from torch.distributions import Distribution

__all__ = ["check_event", "check_rows", "matrix", "positive", "real"]


def real(name: str, value: Tensor | float, shape: tuple[int, ...], *, like: Tensor | None = None) -> Tensor:
    """`value` as a finite floating tensor, broadcast to `shape`; a Parameter is returned as it is.

    A number takes the dtype of `like`.

    Raises:
        TypeError: if `value` holds integers or complex numbers.
        ValueError: if it is not finite or does not broadcast to `shape`.
    """
    if isinstance(value, (int, float)):
        value = torch.tensor(float(value), dtype=None if like is None else like.dtype)
    if not isinstance(value, Tensor) or not value.is_floating_point():
        got = str(value.dtype) if isinstance(value, Tensor) else type(value).__name__
        raise TypeError(f"{name} must hold real numbers, but is {got}: convert it with torch.as_tensor(...).float().")
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
    if not isinstance(value, Tensor) or value.dim() != 2 or value.numel() == 0:
        got = f"has shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"is {type(value).__name__}"
        expected = f"a tensor of shape ({rows}, {columns}) with {rows} > 0 and {columns} > 0"
        raise ValueError(f"{name} must be {expected}, but {got}.")
    return real(name, value, tuple(value.shape))


def check_event(q: Distribution, shape: tuple[int, ...], *, owner: str) -> None:
    """Raises unless a draw from `q` has the shape of the latent h."""
    if tuple(q.event_shape) != shape:
        raise ValueError(f"{owner}: q is over vectors of shape {tuple(q.event_shape)}, but h has shape {shape}.")


def check_rows(x: Tensor, shape: tuple[int, ...], support: constraints.Constraint, dtype: torch.dtype, *, owner: str) -> None:
    """Raises unless `x` is (N, *shape) of `dtype` with N > 0 and every entry in `support`; names the first bad row."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{owner}: x must be a torch.Tensor, not {type(x).__name__}: use torch.as_tensor(x).")
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
