"""Modes around a circle, all but one of which a unimodal q misses."""

from __future__ import annotations

from math import pi

import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor

from .arguments import count, positive
from .target import Target

__all__ = ["Ring"]


class Ring(Target):
    r"""h in R²: a mixture of equal Gaussians with centres on a circle.

        j ~ Uniform{0 … modes − 1}
        h ~ Normal(radius (cos(2π j / modes), sin(2π j / modes)), scale)

    A unimodal q that maximises the ELBO covers one mode. Its ELBO is log(modes) nats too low, and its own draws do not
    reveal it.

    Args:
        modes: number of modes, at least 1.
        radius: radius of the circle.
        scale: standard deviation of each mode, in each coordinate.

    Reference: Blei, Kucukelbir & McAuliffe, "Variational inference: a review for statisticians" (2017), section 2.
    """

    radius: Tensor
    scale: Tensor

    def __init__(self, modes: int = 6, *, radius: Tensor | float = 4.0, scale: Tensor | float = 0.5) -> None:
        super().__init__()
        self.modes = count("Ring: modes", modes)
        self.declare("radius", positive("radius", radius, ()), constraints.positive)
        self.declare("scale", positive("scale", scale, ()), constraints.positive)

    def target(self) -> _OverPlane:
        angle = 2 * pi * torch.arange(self.modes, device=self.radius.device).to(self.radius.dtype) / self.modes
        loc = self.radius * torch.stack([angle.cos(), angle.sin()], -1)
        return _OverPlane(dist.Categorical(torch.ones_like(angle)), dist.Normal(loc, self.scale).to_event(1))


class _OverPlane(dist.MixtureSameFamily):
    # torch has no bijection to the constraint that it uses as the support of a mixture.
    support = constraints.real_vector
