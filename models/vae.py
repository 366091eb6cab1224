"""The generative model of the variational auto-encoder: a net between a Gaussian latent and each datum."""

from __future__ import annotations

from collections.abc import Callable
from typing import Self

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor, nn

from .arguments import count, counts, instance, naming, shown
from .base import LocalModel
from .datasets import Dataset
from .decoders import MLP
from .observations import Bernoulli, Gaussian, Observation

__all__ = ["VAE"]


class VAE(LocalModel):
    r"""A latent h_i in R^k behind each x_i, through a decoder net.

        h_i ~ Normal(0, I_k)
        x_i ~ observation(decoder(h_i) + offset)        i = 1 … N, independent entries

    The decoder, the offset and the parameters of the observation belong to the model, so a fit learns them together with the
    guide. The KL from every Gaussian to the prior has a closed form (Kingma & Welling 2013, appendix B).

    Args:
        data_shape: shape of one x_i: (784,), (28, 28), (3, 32, 32), ….
        latents: k.
        decoder: a net (*, k) → (*, *data_shape), or a spec such as ``decoders.MLP((200, 200))`` that makes one.
        observation: p(x_i | output), an instance of a class of ``models.observations``.

    Raises:
        ValueError: if a size is not positive, or the decoder's output does not have the shape of x_i.

    Reference: Kingma & Welling, "Auto-encoding variational Bayes" (2013); Rezende, Mohamed & Wierstra (2014).
    """

    prior_scale: Tensor
    offset: nn.Parameter

    def __init__(
        self,
        data_shape: tuple[int, ...],
        latents: int,
        *,
        decoder: nn.Module | Callable[[int, tuple[int, ...]], nn.Module] | None = None,
        observation: Observation | None = None,
    ) -> None:
        super().__init__()
        owner = type(self).__name__
        latents, self._shape = count(f"{owner}: latents", latents), counts(f"{owner}: data_shape", data_shape)
        if observation is not None:
            instance(f"{owner}: observation", observation, Observation, example="Gaussian()")
        if not (decoder is None or callable(decoder)) or isinstance(decoder, type):
            raise TypeError(f"{owner}: decoder must be a net or a spec such as MLP(), but is {shown(decoder)}.")
        spec = MLP() if decoder is None else decoder
        with naming(f"{owner}: the decoder"):
            self.decoder = spec if isinstance(spec, nn.Module) else spec(latents, self._shape)
            with torch.no_grad():
                made = self.decoder(torch.zeros(1, latents))
        if not isinstance(made, Tensor):
            raise TypeError(f"{owner}: decoder must map h to a tensor, but it returned {shown(made)}.")
        self.observation = Bernoulli() if observation is None else observation
        self.support = self.observation.support
        self.offset = nn.Parameter(torch.zeros(self._shape))
        self.declare_prior(latents)
        if tuple(made.shape) != (1, *self._shape):
            raise ValueError(
                f"{owner}: the decoder maps one h to shape {tuple(made.shape)}, but (1, *data_shape) = {(1, *self._shape)} is "
                "needed."
            )

    @classmethod
    def demo(cls, *, seed: int = 0) -> tuple[Self, Tensor]:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = cls((12,), 2, decoder=MLP((8,)))
        with torch.no_grad():
            # Larger weights move the posterior away from the prior.
            next(iter(model.decoder.parameters())).mul_(6.0)
        return model, model.simulate(60, seed=seed)[1]

    @classmethod
    def from_dataset(cls, data: Dataset, *, latents: int = 8, seed: int = 0) -> tuple[Self, Tensor]:
        """A decoder with 64 hidden units and random weights; the offset reproduces the data's mean.

        The observation is Bernoulli if every entry is 0 or 1, else Gaussian with a learned scale.
        """
        x = data.x
        binary = bool(((x == 0) | (x == 1)).all())
        observation = Bernoulli() if binary else Gaussian(float(x.std()))
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = cls(tuple(x.shape[1:]), latents, observation=observation).to(x.dtype)
        model.start_at(x)
        return model, x

    @property
    def data_shape(self) -> tuple[int, ...]:
        return self._shape

    @property
    def latents(self) -> int:
        """k."""
        return len(self.prior_scale)

    def declare_prior(self, latents: int) -> None:
        """Makes the tensors of the prior."""
        self.register_buffer("prior_scale", torch.ones(latents))

    def start_at(self, x: Tensor) -> None:
        """Sets the offset so that a decoder with output zero gives about the mean of the rows `x`."""
        with torch.no_grad():
            self.offset.copy_(self.observation.offset(x.mean(0)))

    def decode(self, h: Tensor) -> TorchDistribution:
        """p(x | h), batch shape h.shape[:-1], event shape data_shape."""
        output = self.decoder(h) + self.offset
        return self.observation(output).to_event(len(self._shape))

    def prior(self) -> Tensor:
        return pyro.sample("h", dist.Normal(0.0, self.prior_scale).to_event(1))

    def likelihood(self, h: Tensor, x: Tensor | None = None) -> Tensor:
        return pyro.sample("x", self.decode(h), obs=x)
