"""A start at the Gaussian found by Pathfinder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from math import isfinite
from typing import Any

from torch import Tensor

from guides import FullRank, Global

from ..optimisers import Pathfinder, SolverTask
from ..programs.arguments import check_fields
from ..programs.draws import draw_all
from .base import Start

__all__ = ["FromPathfinder"]


@dataclass(frozen=True)
class FromPathfinder(Start):
    """Starts at the guide nearest to the best Gaussian along several quasi-Newton paths, in the bulk of the posterior.

    Costs some tens to hundreds of gradients, and a square matrix with one row for each number in the latents.

    Args:
        pathfinder: the solver.
        steps: maximum number of iterations of all paths together.
        draws: number of draws from the Gaussian, at least 2.
    """

    pathfinder: Pathfinder = field(default_factory=Pathfinder)
    steps: int = 400
    draws: int = 500

    def __post_init__(self) -> None:
        check_fields(self)
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
        return draw_all(model, guide, args, draws=self.draws).h
