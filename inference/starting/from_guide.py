"""A guide that is fitted already."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..programs.draws import draws as draw
from .base import Start

__all__ = ["FromGuide"]


@dataclass(frozen=True)
class FromGuide(Start):
    """Starts from an already fitted guide of the same model, of any kind and family: a mean field for a full rank, say.

    Args:
        guide: the fitted guide, such as `Fit.guide`.
        count: draws to take from it.
    """

    guide: Callable[..., Any]
    count: int = 500

    def __post_init__(self) -> None:
        if self.count < 2:
            raise ValueError(f"FromGuide: count must be at least 2, but is {self.count}.")

    def draws(self, model: Callable[..., Any], args: tuple[Any, ...]) -> dict[str, Tensor]:
        chunks = list(draw(model, self.guide, args, particles=self.count))
        return {name: torch.cat([chunk.h[name] for chunk in chunks]) for name in chunks[0].h}
