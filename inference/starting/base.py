"""The contract of a start."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

from torch import Tensor

__all__ = ["Start"]


class Start(ABC):
    """Makes draws of the model's latents, from which a guide starts. Any source of draws can be a start.

    The guide is moved to the draws by maximum likelihood (`starting.place`), so a start does not depend on guide or family. A
    single draw moves the guide's mean and leaves its scale.
    """

    @abstractmethod
    def draw(self, model: Callable[..., Any], args: tuple[Any, ...]) -> dict[str, Tensor]:
        """K draws of each latent in its own support, shape (K, *shape). Called inside `isolated`, once for each restart."""
