"""Functions over many draws: by vmap in one call, or, for a program that vmap cannot map, by one call for each draw."""

from __future__ import annotations

import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor
from torch.linalg import LinAlgError  # type: ignore[attr-defined]
from torch.utils._pytree import tree_map

from .bound import unwrap

__all__ = ["Mapped"]

REASONS = {
    "inplace": "it changes a tensor in place",
    "in-place": "it changes a tensor in place",
    "data-dependent": "it branches on the value of a tensor, or reads it",
    ".item()": "it branches on the value of a tensor, or reads it",
    "randomness": "it draws random numbers",
    "setup_context": "its autograd.Function has no setup_context",
    "staticmethod": "its autograd.Function has no rule for it",
}
"""A word in torch's message, and the reason in ours."""
ROOT = Path(__file__).parents[2]
FOLDERS = (Path(torch.__file__).parents[1], ROOT / "models", ROOT / "guides", ROOT / "inference")
"""Where the code of libraries, and ours, lies."""


class Mapped:
    """`function` over the rows of its arguments.

    Args:
        function: from tensors to a tensor, or to a container of tensors.
        program: the program that it runs. A warning says, once for each program, why it cannot be mapped.
        each: the same function for one row, if it must be another one where vmap fails.
    """

    def __init__(self, function: Callable[..., Any], program: Any, *, each: Callable[..., Any] | None = None) -> None:
        self._many = torch.func.vmap(function)
        self._one = function if each is None else each
        self._program = unwrap(program)
        self._maps = True

    def __call__(self, *rows: Tensor) -> Any:
        if self._maps:
            try:
                return self._many(*rows)
            except LinAlgError:
                # A matrix of some draw cannot be factorised: the program's own failure.
                raise
            except Exception as error:
                found = self._each(*rows)
                self._maps = False
                _warn(self._program, error)
                return found
        return self._each(*rows)

    def _each(self, *rows: Tensor) -> Any:
        found = [self._one(*row) for row in zip(*rows, strict=True)]
        return tree_map(lambda *values: torch.stack(values), found[0], *found[1:])


_WARNED: WeakSet[Any] = WeakSet()


def _warn(program: Any, error: Exception) -> None:
    if program in _WARNED:
        return
    _WARNED.add(program)
    text = str(error).lower()
    reason = next((ours for word, ours in REASONS.items() if word in text), "an operation cannot be mapped")
    frames = [
        f for f in traceback.extract_tb(error.__traceback__) if not any(Path(f.filename).is_relative_to(p) for p in FOLDERS)
    ]
    where = f" ({frames[-1].filename}:{frames[-1].lineno})" if frames else ""
    name = getattr(program, "__name__", type(program).__name__)
    warnings.warn(
        f"{name} is run once for each draw, because torch.func.vmap cannot run it for many at once: {reason}{where}. The "
        "result is the same, but slower.",
        stacklevel=3,
    )
