"""The Gaussian that Pathfinder finds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from math import isfinite
from typing import Any

import torch
from torch import Tensor

from guides import FullRank, Global

from ..optimisers import Pathfinder, SolverTask
from ..programs.draws import draw_chunks
from .base import Start

__all__ = ["FromPathfinder"]


@dataclass(frozen=True)
class FromPathfinder(Start):
    """Starts at the guide that is nearest to the best Gaussian along some quasi-Newton paths: in the bulk of the posterior.

    It takes some tens to hundreds of gradients, and matrices of as many rows as the model has latents in all.

    Args:
        pathfinder: how it is found.
        steps: the most iterations of all its paths.
        draws: draws to take from it.
    """

    pathfinder: Pathfinder = field(default_factory=Pathfinder)
    steps: int = 400
    draws: int = 500

    def __post_init__(self) -> None:
        if self.draws < 2:
            raise ValueError(f"FromPathfinder: draws must be at least 2, but is {self.draws}.")
        if self.steps < 1:
            raise ValueError(f"FromPathfinder: steps must be at least 1, but is {self.steps}.")

    def draw(self, model: Callable[..., Any], args: tuple[Any, ...]) -> dict[str, Tensor]:
        guide = Global(model, FullRank())
        guide.setup(*args)
        losses = self.pathfinder.solve(SolverTask(model, guide, args, list(guide.parameters())), steps=self.steps).losses
        if not isfinite(losses[-1]):
            raise ValueError("FromPathfinder: log p(x, h) is not finite along any path: use FromInit or FromPrior.")
        chunks = list(draw_chunks(model, guide, args, draws=self.draws))
        return {name: torch.cat([chunk.h[name] for chunk in chunks]) for name in chunks[0].h}
