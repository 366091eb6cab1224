"""The contract of a start."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

from torch import Tensor

__all__ = ["Start"]


class Start(ABC):
    """Gives draws of the model's latents for a guide to start from; whatever makes draws can be one.

    The guide is moved to them by maximum likelihood (`starting.place`), so a start knows nothing of guides and families. A
    single draw moves the guide's location alone and leaves its scale.
    """

    @abstractmethod
    def draw(self, model: Callable[..., Any], args: tuple[Any, ...]) -> dict[str, Tensor]:
        """Each latent's draws in its own support, shape (K, *shape). Called inside `isolated`, anew for each restart."""
