"""Log densities, scores and curvatures of a model at packed unconstrained latents, inside the parameters of the caller."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from pyro import poutine
from torch import Tensor

from guides.latents import Latents

from .log_joint import gradient
from .mapping import Mapped, NotMappedError, mappable
from .whole_data import on_all_rows

__all__ = ["PackedScores"]

MAX_NUMBERS = 2**20
"""Numbers in the data times points that one mapped call scores."""


class PackedScores:
    """z ↦ log p(x, h(z)) + log |det ∂h/∂z| with its derivatives, in float64, mapped over points where the model allows it.

    Args:
        model: any Pyro program with continuous latents.
        latents: its latents, packed into one vector or into one for each datum.
        args: arguments of one call, with all the data. Plates that subsample by themselves have all their rows.
    """

    def __init__(self, model: Callable[..., Any], latents: Latents, args: tuple[Any, ...]) -> None:
        self.model, self.latents, self.args = on_all_rows(model), latents, args
        self._scored = Mapped(torch.func.vmap(self._value_and_score), self._alone)
        numbers = self._observed() + latents.dim
        self.chunk = max(1, MAX_NUMBERS // max(1, numbers))

    def _observed(self) -> int:
        """Numbers in the data. A prior that cannot be drawn from leaves those of the arguments."""
        try:
            with torch.no_grad(), torch.random.fork_rng(), poutine.block():
                nodes = poutine.trace(self.model).get_trace(*self.args).nodes.values()
        except (NotImplementedError, RuntimeError, ValueError):
            return sum(value.numel() for value in self.args if isinstance(value, Tensor))
        return sum(s["value"].numel() for s in nodes if s["type"] == "sample" and s["is_observed"])

    def at(self, z: Tensor) -> Tensor:
        """log p at one point, shape (*batch, dim): shape (*batch), where batch is () or the number of data."""
        return self.latents.log_joint(self.model, z, self.args)

    def __call__(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Log densities, shape (K, *batch), and scores, shape (K, *batch, dim), at K points."""
        points = z.detach().to(self.latents.dtype)
        parts = [self._scored(part) for part in points.split(self.chunk)]
        log_p, score = (torch.cat(part) for part in zip(*parts, strict=True))
        return log_p.detach().double(), score.detach().double()

    def curvature(self, z: Tensor) -> Tensor:
        """−∂² log p / ∂z² at one point, shape (*batch, dim): shape (*batch, dim, dim)."""
        point, dim = z.detach().to(self.latents.dtype), z.shape[-1]
        directions = torch.eye(dim, dtype=point.dtype).reshape(dim, *(1,) * (point.dim() - 1), dim).expand(dim, *point.shape)

        def slope(z: Tensor, direction: Tensor) -> Tensor:
            return (torch.func.grad(lambda v: self.at(v).sum())(z) * direction).sum()

        try:
            with mappable():
                mapped = torch.func.vmap(torch.func.grad(slope), in_dims=(None, 0), chunk_size=self.chunk)
                columns = mapped(point, directions)
        except NotMappedError:
            columns = torch.stack([self._column(point, direction) for direction in directions])
        matrix = -columns.detach().double().movedim(0, -1)
        return (matrix + matrix.mT) / 2

    def _value_and_score(self, z: Tensor) -> tuple[Tensor, Tensor]:
        def total(v: Tensor) -> tuple[Tensor, Tensor]:
            value = self.at(v)
            return value.sum(), value

        score, (_, value) = torch.func.grad_and_value(total, has_aux=True)(z)
        return value, score

    def _alone(self, z: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            value = self.at(z)
        return value, gradient(self.at, z)

    def _column(self, z: Tensor, direction: Tensor) -> Tensor:
        with torch.enable_grad():
            leaf = z.clone().requires_grad_()
            (score,) = torch.autograd.grad(self.at(leaf).sum(), leaf, create_graph=True)
            (column,) = torch.autograd.grad((score * direction).sum(), leaf)
        return column
