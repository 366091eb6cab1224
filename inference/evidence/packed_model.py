"""The joint density of a model over its packed latents, for many draws at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from guides.latents import Latents
from models import Model

from ..programs.bound import unwrap

__all__ = ["PackedModel"]


class PackedModel:
    """log p(h) and log p(x | h) as functions of the packed unconstrained latents. Call it inside `isolated`.

    Models of this suite take draws as further dimensions on the left. Any other program may index its latents from the left,
    such as ``a[group]``, so it is mapped over the draws, and run once for each if it cannot be mapped.

    Args:
        model: any Pyro program.
        latents: its latents, all of them.
        args: the data.
    """

    def __init__(self, model: Callable[..., Any], latents: Latents, args: tuple[Any, ...]) -> None:
        self.model = model
        self.latents = latents
        self.args = args
        self._batched = isinstance(unwrap(model), Model)
        self._mapped = True

    def log_factors(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """log p(h), as a density over the packed vector, and log p(x | h), each of shape (K, N) or (K,).

        Args:
            h: K draws, shape (K, N, dim), or (K, dim) if the latents are packed without a data plate.
        """
        if self._batched:
            return self.latents.log_factors(self.model, h, self.args)
        if self._mapped:
            try:
                mapped: tuple[Tensor, Tensor] = torch.func.vmap(self._one)(h)
            except (RuntimeError, ValueError, NotImplementedError):
                # In-place code and branches on values cannot be mapped; an error of the model itself shows up again below.
                self._mapped = False
            else:
                return mapped
        prior, likelihood = zip(*(self._one(one) for one in h), strict=True)
        return torch.stack(prior), torch.stack(likelihood)

    def log_joint(self, h: Tensor) -> Tensor:
        """log p(x, h): the sum of `log_factors`."""
        prior, likelihood = self.log_factors(h)
        return prior + likelihood

    def _one(self, h: Tensor) -> tuple[Tensor, Tensor]:
        return self.latents.log_factors(self.model, h, self.args)
