"""Values of all parameters, to go back to."""

from __future__ import annotations

from collections.abc import Sequence

import pyro
import torch
from torch import Tensor

__all__ = ["Checkpoint"]


class Checkpoint:
    """The parameters as they are now. Those that a later step meets for the first time are forgotten on the way back.

    Args:
        leaves: the tensors that are learned.
    """

    def __init__(self, leaves: Sequence[Tensor]) -> None:
        self._values = [(leaf, leaf.detach().clone()) for leaf in leaves]
        self._names = set(pyro.get_param_store().keys())

    def restore(self) -> None:
        """Goes back."""
        store = pyro.get_param_store()
        for name in [name for name in store.keys() if name not in self._names]:  # noqa: SIM118
            del store[name]
        with torch.no_grad():
            for leaf, value in self._values:
                leaf.copy_(value)
