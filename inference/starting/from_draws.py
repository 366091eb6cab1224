"""A start at given draws."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from models.arguments import shown

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
        for name, value in self.latents.items():
            if not value.dim() or not len(value):
                raise ValueError(
                    f"FromDraws: latents[{name!r}] must have shape (K, *shape) with K > 0, but is {shown(value)}."
                )
            if not value.isfinite().all():
                raise ValueError(
                    f"FromDraws: latents[{name!r}] must be finite, but holds {value[~value.isfinite()][0].item()}."
                )

    def draw(self, model: Callable[..., Any], args: tuple[Any, ...]) -> dict[str, Tensor]:
        return dict(self.latents)
