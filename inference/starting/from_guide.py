"""A start at a fitted guide."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..programs.arguments import check_fields
from ..programs.draws import draw_all
from .base import Start

__all__ = ["FromGuide"]


@dataclass(frozen=True)
class FromGuide(Start):
    """Starts from a fitted guide of the same model. Source and family may differ: a full rank can start from a mean field.

    Args:
        guide: the fitted guide, such as `Fit.guide`.
        draws: number of draws from it, at least 2.
    """

    guide: Callable[..., Any]
    draws: int = 500

    def __post_init__(self) -> None:
        check_fields(self)
        if self.draws < 2:
            raise ValueError(f"FromGuide: draws must be at least 2, but is {self.draws}.")

    def draw(self, model: Callable[..., Any], args: tuple[Any, ...]) -> dict[str, Tensor]:
        return draw_all(model, self.guide, args, draws=self.draws).h
