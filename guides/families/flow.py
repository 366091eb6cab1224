"""A normalizing flow with all its parameters in λ."""

from __future__ import annotations

from math import sqrt
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import Distribution, Transform, constraints
from torch.nn.functional import softplus

from ..arguments import count
from .base import Family, inverse_softplus

with pyro.settings.context(validate_distributions_torch=Distribution._validate_args):
    # zuko switches off torch's validation when it is imported; the context restores it.
    from zuko.transforms import CouplingTransform, MonotonicAffineTransform

__all__ = ["Flow"]

MIN_FACTOR = 0.1
"""Least factor by which a layer scales a coordinate (1 / MIN_FACTOR is the largest): at most log 10 nats for each of them."""


class Flow(Family):
    r"""h = loc + scale · T(ε), ε ~ Normal(0, I), with T a stack of affine coupling layers.

    Each layer keeps one half of the coordinates, a, and maps the other, b → exp(s(a)) b + t(a), where (s, t) is a net with
    one hidden layer of tanh units. The halves alternate. A layer scales b by a factor between 0.1 and 10.
    λ = (loc, softplus⁻¹ scale, the weights of all nets). No weight is shared between data, so the best λ_i is the best flow
    for x_i; under `Amortized` the encoder returns a whole flow for each datum. The family contains every `MeanField` and
    starts from one.

    Over R¹ the flow is a Gaussian, because there is no other half to condition on.

    Args:
        layers: number of coupling layers; two layers map every coordinate once.
        hidden: number of hidden units in the net of each layer.
        scale: standard deviation of q at the start of a fit.

    Raises:
        ValueError: if an argument is not positive.

    Reference: Dinh, Sohl-Dickstein & Bengio, "Density estimation using Real NVP" (2017); Rezende & Mohamed (2015).
    """

    def __init__(self, layers: int = 4, hidden: int = 8, *, scale: float = 0.1) -> None:
        super().__init__(scale=scale)
        self.layers = count("Flow: layers", layers)
        self.hidden = count("Flow: hidden", hidden)

    @property
    def size(self) -> int:
        return 2 * self.dim + sum(sum(self._split(layer)) for layer in range(self.layers))

    def start(self) -> Tensor:
        """`MeanField`'s Gaussian: second weight matrices are zero, and first ones random, to give the second a gradient."""
        generator = torch.Generator().manual_seed(0)
        parts = [torch.zeros(self.dim), torch.full((self.dim,), inverse_softplus(self.scale))]
        for layer in range(self.layers):
            kept, first, second = *self._halves(layer)[:1], *self._split(layer)
            parts += [torch.randn(first, generator=generator) / sqrt(kept + 1), torch.zeros(second)]
        return torch.cat(parts)

    def forward(self, lam: Tensor) -> dist.TransformedDistribution:
        sizes = [size for layer in range(self.layers) for size in self._split(layer)]
        loc, raw_scale, *weights = lam.split([self.dim, self.dim, *sizes], -1)
        layers = [
            _Coupling(_Conditioner(first, second, *self._halves(layer), self.hidden), self._mask(layer, lam))
            for layer, first, second in zip(range(self.layers), weights[::2], weights[1::2], strict=True)
        ]
        base = dist.Normal(torch.zeros_like(loc), 1.0).to_event(1)
        return dist.TransformedDistribution(base, [_Stack(layers, loc, softplus(raw_scale))])

    def _halves(self, layer: int) -> tuple[int, int]:
        """The number of coordinates that a layer keeps, and that it maps."""
        kept = self.dim // 2 if layer % 2 == 0 or self.dim == 1 else self.dim - self.dim // 2
        return kept, self.dim - kept

    def _split(self, layer: int) -> tuple[int, int]:
        """The size of each of the two weight matrices of a layer's net, biases included."""
        kept, moved = self._halves(layer)
        return (kept + 1) * self.hidden, (self.hidden + 1) * 2 * moved

    def _mask(self, layer: int, lam: Tensor) -> Tensor:
        """True for the coordinates that a layer keeps: the odd ones in even layers, the even ones in odd layers."""
        odd = torch.arange(self.dim, device=lam.device) % 2 == 1
        return odd if layer % 2 == 0 or self.dim == 1 else ~odd


class _Conditioner:
    """The net (s, t) of one layer, with weights from λ."""

    def __init__(self, first: Tensor, second: Tensor, kept: int, moved: int, hidden: int) -> None:
        self.first = first.unflatten(-1, (hidden, kept + 1))
        self.second = second.unflatten(-1, (2 * moved, hidden + 1)) / sqrt(hidden + 1)

    def __call__(self, kept: Tensor) -> Transform:
        log_scale, shift = _affine(self.second, _affine(self.first, kept).tanh()).chunk(2, -1)
        return MonotonicAffineTransform(shift, log_scale, slope=MIN_FACTOR)


class _Coupling(CouplingTransform):
    """zuko's layer without `Transform.inv`, whose reference cycle with its transform would keep unused graphs in memory."""

    def _inverse(self, y: Tensor) -> Tensor:
        kept, moved = self.split(y)
        return self.merge(kept, self.meta(kept)._inverse(moved), y.shape)

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y, each = super().call_and_ladj(x)
        return y, each.sum(-1)


class _Stack(Transform):
    """The composition of all layers, followed by loc + scale · z."""

    domain = constraints.real_vector
    codomain = constraints.real_vector
    bijective = True

    def __init__(self, layers: list[_Coupling], loc: Tensor, scale: Tensor, **options: Any) -> None:
        super().__init__(**options)
        self.layers, self.loc, self.scale = layers, loc, scale

    @property
    def inv(self) -> _Inverse:
        return _Inverse(self)

    def _call(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer._call(x)
        return self.loc + self.scale * x

    def _inverse(self, y: Tensor) -> Tensor:
        x = (y - self.loc) / self.scale
        for layer in reversed(self.layers):
            x = layer._inverse(x)
        return x

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        total = self.scale.log().sum(-1)
        for layer in self.layers:
            x, part = layer.call_and_ladj(x)
            total = total + part
        return total


class _Inverse(Transform):
    """The inverse of a stack, made again for each use to avoid torch's reference cycle."""

    domain = constraints.real_vector
    codomain = constraints.real_vector
    bijective = True

    def __init__(self, forward: _Stack) -> None:
        super().__init__()
        self._forward = forward

    def _call(self, x: Tensor) -> Tensor:
        return self._forward._inverse(x)


def _affine(weight: Tensor, x: Tensor) -> Tensor:
    """weight · (x, 1): the last column of `weight` is the bias."""
    return (weight[..., :-1] @ x.unsqueeze(-1)).squeeze(-1) + weight[..., -1]
