"""The prior."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from guides import Prior

from ..programs.draws import draw_chunks
from .base import Start

__all__ = ["FromPrior"]


@dataclass(frozen=True)
class FromPrior(Start):
    """Starts at the guide that is nearest to the prior: wide, and nowhere in particular.

    For a single draw of the prior as the place to start from use `FromInit`.

    Args:
        draws: draws to take from the prior.
    """

    draws: int = 500

    def __post_init__(self) -> None:
        if self.draws < 2:
            raise ValueError(f"FromPrior: draws must be at least 2, but is {self.draws}.")

    def draw(self, model: Callable[..., Any], args: tuple[Any, ...]) -> dict[str, Tensor]:
        if not getattr(model, "proper", True):
            raise ValueError(f"{type(model).__name__} has an improper prior, from which nothing can be drawn: use FromInit.")
        chunks = list(draw_chunks(model, Prior(model), args, draws=self.draws))
        return {name: torch.cat([chunk.h[name] for chunk in chunks]) for name in chunks[0].h}
