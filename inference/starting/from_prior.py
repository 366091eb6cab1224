"""The prior."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from guides import Prior

from ..programs.draws import draw_all
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
        return draw_all(model, Prior(model), args, draws=self.draws).h
