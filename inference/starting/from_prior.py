"""The prior."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from guides import Prior

from ..programs.draws import draws as draw
from .base import Start

__all__ = ["FromPrior"]


@dataclass(frozen=True)
class FromPrior(Start):
    """Starts at the guide that is nearest to the prior: wide, and nowhere in particular.

    For a single draw of the prior as the place to start from use `FromInit`.

    Args:
        count: draws to take from the prior.
    """

    count: int = 500

    def __post_init__(self) -> None:
        if self.count < 2:
            raise ValueError(f"FromPrior: count must be at least 2, but is {self.count}.")

    def draws(self, model: Callable[..., Any], args: tuple[Any, ...]) -> dict[str, Tensor]:
        if not getattr(model, "proper", True):
            raise ValueError(f"{type(model).__name__} has an improper prior, from which nothing can be drawn: use FromInit.")
        chunks = list(draw(model, Prior(model), args, particles=self.count))
        return {name: torch.cat([chunk.h[name] for chunk in chunks]) for name in chunks[0].h}
