"""A guide that is fitted already."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..programs.draws import draw_all
from .base import Start

__all__ = ["FromGuide"]


@dataclass(frozen=True)
class FromGuide(Start):
    """Starts from an already fitted guide of the same model, of any kind and family: a mean field for a full rank, say.

    Args:
        guide: the fitted guide, such as `Fit.guide`.
        draws: draws to take from it.
    """

    guide: Callable[..., Any]
    draws: int = 500

    def __post_init__(self) -> None:
        if self.draws < 2:
            raise ValueError(f"FromGuide: draws must be at least 2, but is {self.draws}.")

    def draw(self, model: Callable[..., Any], args: tuple[Any, ...]) -> dict[str, Tensor]:
        return draw_all(model, self.guide, args, draws=self.draws).h
