"""A start at given draws."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..programs.arguments import check_fields
from .base import Start

__all__ = ["FromDraws"]


@dataclass(frozen=True)
class FromDraws(Start):
    """Starts from given draws, such as those of Pathfinder, a short NUTS run, or another program.

    Args:
        latents: K draws of each latent in its own support, shape (K, *shape).
    """

    latents: Mapping[str, Tensor]

    def __post_init__(self) -> None:
        check_fields(self)

    def draw(self, model: Callable[..., Any], args: tuple[Any, ...]) -> dict[str, Tensor]:
        return dict(self.latents)
