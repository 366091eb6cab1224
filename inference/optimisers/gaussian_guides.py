"""Guides of every origin that are one Gaussian over a model's unconstrained latents, or one for each datum."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from pyro.infer.autoguide import (
    AutoDiagonalNormal,
    AutoGuide,
    AutoMultivariateNormal,
    AutoNormal,
)
from torch import Tensor
from torch.distributions import transform_to

from guides import FullRank, Global, Local, MeanField
from guides.latents import Latents

from ..programs.bound import unwrap
from ..programs.whole_data import on_all_rows
from .base import SolverTask
from .gaussian_state import GaussianState

__all__ = ["GaussianGuide", "gaussian_guide"]


class GaussianGuide(ABC):
    """The mean and covariance of a guide's Gaussian: `read` them, and `write` them into its own parameters.

    Attributes:
        latents: the packed latents of the model.
    """

    latents: Latents

    @abstractmethod
    def read(self) -> GaussianState:
        """The present q, in float64."""

    @abstractmethod
    def write(self, q: GaussianState) -> None:
        """Sets the parameters to those of `q`, in place."""


def gaussian_guide(task: SolverTask) -> GaussianGuide | None:
    """The Gaussian of the task's guide; None if the guide is another one, or has other parameters to learn too."""
    guide: Any = unwrap(task.guide)
    if isinstance(guide, (Global, Local)):
        if len(task.parameters) == 1 and isinstance(guide.family, (MeanField, FullRank)):
            return _OfSuite(guide, task)
        return None
    if type(guide) not in _OF_PYRO:
        return None
    own = {id(parameter) for parameter in guide.parameters()}
    if not all(id(parameter) in own for parameter in task.parameters):
        return None
    latents = Latents(on_all_rows(unwrap(task.model)), task.args, {}, plate=None)
    if [name for name, _ in guide.prototype_trace.iter_stochastic_nodes()] != [site.name for site in latents.sites]:
        return None
    found = _OF_PYRO[type(guide)](guide, latents)
    return found if found.read().loc.shape == (latents.dim,) else None


class _OfSuite(GaussianGuide):
    """`Global` or `Local` with a family that has blocks."""

    def __init__(self, guide: Any, task: SolverTask) -> None:
        assert guide.latents is not None
        self.guide, self.task, self.latents = guide, task, guide.latents

    def read(self) -> GaussianState:
        return GaussianState.of(self.guide.q(self.task.args[0] if self.task.args else None), self.guide.family)

    def write(self, q: GaussianState) -> None:
        with torch.no_grad():
            self.task.parameters[0].copy_(self.guide.family.inverse(q.loc, q.root))


class _OfPyro(GaussianGuide):
    """An autoguide of Pyro."""

    def __init__(self, guide: AutoGuide, latents: Latents) -> None:
        self.guide: Any = guide
        self.latents = latents


class _PerSite(_OfPyro):
    """`AutoNormal`: a mean and a scale for each site."""

    def read(self) -> GaussianState:
        loc, scale = (self._packed(part) for part in (self.guide.locs, self.guide.scales))
        return _diagonal(loc, scale)

    def write(self, q: GaussianState) -> None:
        widths = [self._leaf(self.guide.locs, site.name).numel() for site in self.latents.sites]
        scale = q.root.diagonal(dim1=-2, dim2=-1)
        for site, loc, part in zip(self.latents.sites, q.loc.split(widths), scale.split(widths), strict=True):
            _set(self.guide.locs, site.name, loc)
            _set(self.guide.scales, site.name, part)

    def _packed(self, parts: Any) -> Tensor:
        values = [self._leaf(parts, site.name) for site in self.latents.sites]
        return torch.cat([value.detach().double().reshape(-1) for value in values])

    @staticmethod
    def _leaf(parts: Any, name: str) -> Tensor:
        *path, last = name.split(".")
        for step in path:
            parts = getattr(parts, step)
        found: Tensor = getattr(parts, last)
        return found


class _Diagonal(_OfPyro):
    """`AutoDiagonalNormal`."""

    def read(self) -> GaussianState:
        return _diagonal(self.guide.loc.detach().double(), self.guide.scale.detach().double())

    def write(self, q: GaussianState) -> None:
        _set(self.guide, "loc", q.loc)
        _set(self.guide, "scale", q.root.diagonal(dim1=-2, dim2=-1))


class _FullRank(_OfPyro):
    """`AutoMultivariateNormal`, whose Cholesky factor is a scale for each row times a unit triangle."""

    def read(self) -> GaussianState:
        loc = self.guide.loc.detach().double()
        root = self.guide.scale.detach().double().unsqueeze(-1) * self.guide.scale_tril.detach().double()
        return GaussianState(loc, torch.cholesky_inverse(root), torch.ones_like(root))

    def write(self, q: GaussianState) -> None:
        root = q.root
        scale = root.diagonal(dim1=-2, dim2=-1)
        _set(self.guide, "loc", q.loc)
        _set(self.guide, "scale", scale)
        _set(self.guide, "scale_tril", root / scale.unsqueeze(-1))


_OF_PYRO: dict[type[AutoGuide], Callable[[Any, Latents], GaussianGuide]] = {
    AutoNormal: _PerSite,
    AutoDiagonalNormal: _Diagonal,
    AutoMultivariateNormal: _FullRank,
}


def _diagonal(loc: Tensor, scale: Tensor) -> GaussianState:
    return GaussianState(loc, scale.square().reciprocal().diag_embed(), torch.eye(len(loc), dtype=loc.dtype))


def _set(module: Any, name: str, value: Tensor) -> None:
    """Sets a parameter of a module, constrained or not, in place: the tensor that an optimiser holds keeps its identity."""
    *path, last = name.split(".")
    for step in path:
        module = getattr(module, step)
    constraint = module._pyro_params[last][0] if last in getattr(module, "_pyro_params", {}) else None
    own = dict(module.named_parameters(recurse=False))
    with torch.no_grad():
        if constraint is not None and f"{last}_unconstrained" in own:
            leaf = own[f"{last}_unconstrained"]
            value = transform_to(constraint).inv(value.reshape(getattr(module, last).shape))
        else:
            leaf = own[last]
        leaf.copy_(value.reshape(leaf.shape))
