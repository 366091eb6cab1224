"""A convolutional encoder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from math import prod

from torch import Tensor, nn

from ..arguments import counts, maker

__all__ = ["Conv"]


class Conv:
    """Spec of convolutions, each of which halves height and width, and a linear layer.

    A call with the shape of x_i and the size of λ_i, made by `Amortized`, makes the net (*, *shape) → (*, size).

    Args:
        channels: channels of each layer.
        activation: makes the nonlinearity after each layer.

    Raises:
        ValueError: if there is no layer or an empty one; in a call, unless the shape is (height, width) or (channels, height,
            width), with height and width multiples of 2^layers.
    """

    def __init__(self, channels: Sequence[int] = (16, 32), *, activation: Callable[[], nn.Module] = nn.ReLU) -> None:
        self.channels = counts("Conv: channels", channels)
        self.activation = maker("Conv: activation", activation)

    def __call__(self, shape: tuple[int, ...], size: int) -> nn.Module:
        factor = 2 ** len(self.channels)
        if len(shape) not in (2, 3) or any(side % factor for side in shape[-2:]):
            raise ValueError(
                f"Conv cannot take x_i of shape {shape}: (height, width) or (channels, height, width) is needed, both sides "
                f"multiples of {factor} for {len(self.channels)} layers. Reshape x, or give another number of layers."
            )
        image = (1, *shape) if len(shape) == 2 else shape
        layers: list[nn.Module] = []
        for before, after in pairwise((image[0], *self.channels)):
            layers += [nn.Conv2d(before, after, kernel_size=4, stride=2, padding=1), self.activation()]
        features = self.channels[-1] * prod(side // factor for side in image[1:])
        return _Images(nn.Sequential(*layers, nn.Flatten(), nn.Linear(features, size)), image, len(shape))


class _Images(nn.Module):
    """Applies a net for one batch dimension of images to any number of them."""

    def __init__(self, net: nn.Module, image: tuple[int, ...], event_dim: int) -> None:
        super().__init__()
        self.net = net
        self.image = image
        self.event_dim = event_dim

    def forward(self, x: Tensor) -> Tensor:
        lead = x.shape[: x.dim() - self.event_dim]
        out: Tensor = self.net(x.reshape(-1, *self.image))
        return out.reshape(*lead, out.shape[-1])
