"""A start at the prior."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from guides import Prior

from ..programs.arguments import check_fields
from ..programs.draws import draw_all
from .base import Start

__all__ = ["FromPrior"]


@dataclass(frozen=True)
class FromPrior(Start):
    """Starts at the guide nearest to the prior, with the prior's location and scale.

    Use `FromInit` to start at a single draw of the prior.

    Args:
        draws: number of draws from the prior, at least 2.
    """

    draws: int = 500

    def __post_init__(self) -> None:
        check_fields(self)
        if self.draws < 2:
            raise ValueError(f"FromPrior: draws must be at least 2, but is {self.draws}.")

    def draw(self, model: Callable[..., Any], args: tuple[Any, ...]) -> dict[str, Tensor]:
        if not getattr(model, "proper", True):
            raise ValueError(f"{type(model).__name__} has an improper prior, which has no draws: use FromInit.")
        return draw_all(model, Prior(model), args, draws=self.draws).h
