"""Pyro programs under `torch.func.vmap`: what it refuses is replaced where that is safe, else named in plain words."""

from __future__ import annotations

import math
import random
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pyro
import torch
from pyro.distributions import Beta, Dirichlet, Independent, MaskedDistribution
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.overrides import TorchFunctionMode

__all__ = ["Mapped", "NotMappedError", "agree", "mappable"]

ROUNDING = {torch.float64: 1e-10, torch.float32: 1e-3}
"""Relative difference between a mapped number and that of one call: sums are taken in another order."""


class NotMappedError(Exception):
    """A program cannot be mapped over draws. The message says why, as the end of a sentence about the program."""


@contextmanager
def mappable() -> Iterator[None]:
    """Turns every failure of a mapped call into a `NotMappedError`. Checks of values, which vmap cannot take, are off in it.

    A program that draws from the generators of Python or NumPy would draw once for the whole batch, so it is refused.
    """
    before = _other_generators()
    try:
        with pyro.validation_enabled(False), warnings.catch_warnings(), _Mappable(), _MappedDirichlet():
            warnings.filterwarnings("ignore", "There is a performance drop", UserWarning)
            yield
    except NotMappedError:
        raise
    except Exception as error:
        raise NotMappedError(_reason(error)) from error
    if before != _other_generators():
        raise NotMappedError("it draws random numbers from Python's or NumPy's generator")


class Mapped:
    """A function of one point, evaluated at many: mapped if that gives what single calls give, else call by call.

    Args:
        many: the function mapped over the first dimension of its argument; returns one tensor or several.
        one: the function itself, which need not be mappable.
    """

    def __init__(self, many: Callable[[Tensor], Any], one: Callable[[Tensor], Any]) -> None:
        self.many, self.one = many, one
        self.maps: bool | None = None

    def __call__(self, points: Tensor) -> tuple[Tensor, ...]:
        """The results at K points, each with K in its first dimension."""
        if self.maps is not False:
            try:
                with mappable():
                    found = _as_tuple(self.many(points))
                if self.maps is None:
                    self.maps = self._agrees(points, found)
                if self.maps:
                    return found
            except NotMappedError:
                self.maps = False
        return tuple(torch.stack(parts) for parts in zip(*(_as_tuple(self.one(point)) for point in points), strict=True))

    def _agrees(self, points: Tensor, found: tuple[Tensor, ...]) -> bool:
        ends = {0, len(points) - 1}
        return all(agree(m[k], a) for k in ends for m, a in zip(found, _as_tuple(self.one(points[k])), strict=True))


def agree(mapped: Tensor, alone: Tensor) -> bool:
    """Whether a mapped tensor is that of a single call, to rounding."""
    mapped, alone = mapped.detach(), alone.detach()
    if mapped.shape != alone.shape:
        return False
    tolerance = ROUNDING.get(alone.dtype, math.inf) if alone.is_floating_point() else 0.0
    size = torch.where(alone.isfinite(), alone, 0.0).abs().max() if alone.numel() else 0.0
    return torch.allclose(mapped, alone, rtol=tolerance, atol=float(tolerance * (1 + size)), equal_nan=True)


def _as_tuple(found: Any) -> tuple[Tensor, ...]:
    return found if isinstance(found, tuple) else (found,)


def _other_generators() -> tuple[Any, ...]:
    kind, keys, position, *rest = np.random.get_state(legacy=True)  # noqa: NPY002 - the generator that programs share
    return random.getstate(), kind, np.asarray(keys).tobytes(), position, *rest


def _reason(error: Exception) -> str:
    """What stops a program from being mapped, in the words of its author."""
    text = str(error)
    if "control flow" in text or ".item()" in text or "bool" in text:
        return "its control flow, or a Python number that it takes from a tensor, depends on the values of latents"
    if any(words in text for words in ("inplace", "in-place", "in place", "output with shape")):
        return "it changes a tensor in place"
    return f"it uses an operation that torch.func.vmap cannot map ({type(error).__name__})"


class _Mappable(TorchFunctionMode):
    """Replaces what distributions and handlers do that vmap refuses, by the same out of place.

    Noise that fills a new tensor in place is returned as another tensor: the distributions use the result.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func == _DATA:
            return args[0].detach()
        if func is Tensor.__setitem__ and _is_mask(args[1]) and isinstance(args[2], (int, float)):
            args[0].masked_fill_(args[1], args[2])
            return None
        draw = _NOISE.get(func)
        if draw is None or kwargs.get("generator") is not None:
            return func(*args, **kwargs)
        return draw(*args, **kwargs)


def _uniform(like: Tensor, low: float = 0.0, high: float = 1.0) -> Tensor:
    return low + (high - low) * torch.rand_like(like)


def _positive(like: Tensor) -> Tensor:
    """Uniform on (0, 1]."""
    return 1 - torch.rand_like(like)


def _is_mask(index: Any) -> bool:
    return isinstance(index, Tensor) and index.dtype == torch.bool


_DATA = Tensor.data.__get__  # type: ignore[attr-defined]
_LIMITS = {"from": "low", "to": "high", "a": "low", "b": "high"}
_NOISE: dict[Any, Callable[..., Tensor]] = {
    Tensor.normal_: lambda like, mean=0.0, std=1.0: mean + std * torch.randn_like(like),
    Tensor.uniform_: lambda like, *limits, **named: _uniform(like, *limits, **{_LIMITS[k]: v for k, v in named.items()}),
    Tensor.exponential_: lambda like, lambd=1.0: -_positive(like).log() / lambd,
    Tensor.cauchy_: lambda like, median=0.0, sigma=1.0: median + sigma * (math.pi * (_positive(like) - 0.5)).tan(),
}


class _MappedDirichlet(Messenger):
    """Draws from Dirichlet and Beta without torch's own gradient of the draw, which vmap cannot map."""

    def _pyro_sample(self, msg: Any) -> None:
        fn = msg["fn"]
        if msg["done"] or msg["is_observed"] or msg["value"] is not None:
            return
        while isinstance(fn, (Independent, MaskedDistribution)):
            fn = fn.base_dist
        if isinstance(fn, Dirichlet):
            msg["value"] = torch._sample_dirichlet(fn.concentration)
        elif isinstance(fn, Beta):
            msg["value"] = torch._sample_dirichlet(fn._dirichlet.concentration)[..., 0]
