"""A decoder of transposed convolutions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from math import prod

from torch import Tensor, nn

from ..arguments import counts, maker

__all__ = ["Conv"]


class Conv:
    """Spec of transposed convolutions, each of which doubles height and width.

    A call with k and the shape of x_i makes the net (*, k) → (*, *shape).

    Args:
        channels: channels of each hidden layer, from the latent to the image.
        activation: makes the nonlinearity between two layers.

    Raises:
        ValueError: if there is no layer or an empty one; in a call, unless the shape is (height, width) or (channels, height,
            width), with height and width multiples of 2^layers.
    """

    def __init__(self, channels: Sequence[int] = (32, 16), *, activation: Callable[[], nn.Module] = nn.ReLU) -> None:
        self.channels = counts("Conv: channels", channels)
        self.activation = maker("Conv: activation", activation)

    def __call__(self, latents: int, shape: tuple[int, ...]) -> nn.Module:
        factor = 2 ** len(self.channels)
        if len(shape) not in (2, 3) or any(side % factor for side in shape[-2:]):
            raise ValueError(
                f"Conv cannot make x_i of shape {shape}: (height, width) or (channels, height, width) is needed, both sides "
                f"multiples of {factor} for {len(self.channels)} layers. Reshape x, or give another number of layers."
            )
        image = (1, *shape) if len(shape) == 2 else shape
        start = (self.channels[0], image[1] // factor, image[2] // factor)
        layers: list[nn.Module] = [nn.Linear(latents, prod(start)), self.activation(), nn.Unflatten(-1, start)]
        for before, after in pairwise((*self.channels, image[0])):
            layers += [nn.ConvTranspose2d(before, after, kernel_size=4, stride=2, padding=1), self.activation()]
        return _Flat(nn.Sequential(*layers[:-1]), shape)


class _Flat(nn.Module):
    """Applies a net for one batch dimension to any number of them."""

    def __init__(self, net: nn.Module, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.net = net
        self.shape = shape

    def forward(self, h: Tensor) -> Tensor:
        out: Tensor = self.net(h.reshape(-1, h.shape[-1]))
        return out.reshape(*h.shape[:-1], *self.shape)
