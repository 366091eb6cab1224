"""Log densities log p(x, h) and their scores at given points of the guide's space."""

from __future__ import annotations

from typing import Any

import torch
from pyro import poutine
from torch import Tensor

from guides import Guide
from models import Model

from ..programs.bound import unwrap
from ..programs.log_weights import log_density, shared_frames
from ..programs.packed_scores import PackedScores
from ..programs.traced_pairs import Pair, is_point_mass, latents, rerun, traced_pairs
from .base import SolverTask
from .gaussian_guides import GaussianGuide

__all__ = ["Scores"]


class Scores:
    """z ↦ log p(x, z) and ∇_z log p(x, z) for K points in one call, in the space of the guide's vector of latents.

    A model and guide of this suite are called with an outer plate of points. Any other model is mapped over them, or called
    once for each if it cannot be mapped (`PackedScores`).

    Args:
        task: a pair whose guide draws one vector, or one for each datum.
        draws: number K of points in a call.
        target: the Gaussian of the guide, if it is known.
    """

    def __init__(self, task: SolverTask, draws: int, target: GaussianGuide | None = None) -> None:
        self.draws = draws
        self.packed: PackedScores | None = None
        guide: Any = unwrap(task.guide)
        if not (isinstance(unwrap(task.model), Model) and isinstance(guide, Guide)):
            packing = target.latents if target is not None else guide.latents
            self.packed = PackedScores(task.model, packing, task.args)
            return
        self.call: Any = (task.model, task.guide, task.args, {})
        with torch.no_grad():
            pairs = traced_pairs(*self.call, draws=draws, hold=True)
        self.sites = [next((n, s) for n, s in latents(p.guide).items() if not is_point_mass(s["fn"])) for p in pairs]
        self.frames = shared_frames(pairs[0])

    def __len__(self) -> int:
        return self.draws

    def __call__(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Computes log densities and scores in float64.

        Args:
            z: shape (K, *batch, dim), where batch is () for one vector, (N,) for N data.

        Returns:
            log p(x, z), in nats, shape (K, *batch); its gradient, shape (K, *batch, dim).
        """
        if self.packed is not None:
            return self.packed(z)
        parts = z.chunk(len(self.sites))
        found = [self._score(name, site, part) for (name, site), part in zip(self.sites, parts, strict=True)]
        log_p, scores = (torch.cat(part) for part in zip(*found, strict=True))
        return log_p.reshape(z.shape[:-1]), scores.reshape(z.shape)

    def _score(self, name: str, site: dict[str, Any], z: Tensor) -> tuple[Tensor, Tensor]:
        value = z.detach().to(site["value"]).reshape(site["value"].shape).requires_grad_()
        pair = rerun({name: {**site, "value": value}}, *self.call)
        log_p = log_density([pair.model], self.frames) - log_density([_jacobians(pair)], self.frames)
        return log_p.detach().double(), torch.autograd.grad(log_p.sum(), value)[0].double()


def _jacobians(pair: Pair) -> poutine.Trace:
    """The guide's point masses, which map z to the model's latents: their log densities are the log Jacobians of the map."""
    trace = poutine.Trace()
    for name, site in latents(pair.guide).items():
        if is_point_mass(site["fn"]):
            trace.add_node(name, **site)
    return trace
