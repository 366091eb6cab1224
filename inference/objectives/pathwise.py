"""What the objectives share that average a loss over pairs of traces, and are differentiated through the draws."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..programs.log_weights import check_draws
from ..programs.traced_pairs import Pair, Program, traces
from .base import Loss

__all__ = ["Pathwise"]


@dataclass(frozen=True)
class Pathwise(ABC):
    """The mean of `nelbo` over `draws` draws."""

    estimates_elbo: ClassVar[bool] = True
    draws: int = 1

    def __post_init__(self) -> None:
        check_draws(self, self.draws)

    def __call__(self, model: Program, guide: Program, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Loss:
        pairs = traces(model, guide, args, kwargs, draws=self.draws)
        nelbo = torch.stack([self.nelbo(pair) for pair in pairs]).sum() / self.draws
        return Loss(nelbo.detach(), nelbo)

    @abstractmethod
    def nelbo(self, pair: Pair) -> Tensor:
        """The loss of one pair, or of one that holds all draws: shape ()."""
