"""The linear VAE: a variational auto-encoder with a closed form for every quantity."""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor

from .arguments import count
from .datasets import Dataset
from .decoders import Linear
from .gaussian import LinearGaussian
from .linear_gaussian import LinearGaussianModel
from .observations import Gaussian
from .probabilistic_pca import ProbabilisticPCA
from .vae import VAE

__all__ = ["LinearVAE"]


class LinearVAE(LinearGaussianModel, VAE):
    r"""A VAE with a linear decoder W and Gaussian noise with one learned scale.

        h_i ~ Normal(0, I_k)
        x_i ~ Normal(W h_i + offset, noise_scale)       i = 1 … N

    Maximum likelihood is probabilistic PCA, in closed form (`optimum`). A mean-field guide with a linear encoder reaches it
    with orthogonal columns of W, and its ELBO has no other stable maximum.

    Args:
        dim: d, the number of entries of x_i.
        latents: k < d.
        noise_scale: standard deviation of the noise that a fit starts from.

    Reference: Lucas, Tucker, Grosse & Norouzi, "Don't blame the ELBO! A linear VAE perspective on posterior collapse" (2019).
    """

    observation: Gaussian

    def __init__(self, dim: int, latents: int, *, noise_scale: float = 1.0) -> None:
        dim, latents = count("LinearVAE: dim", dim), count("LinearVAE: latents", latents)
        if not latents < dim:
            raise ValueError(f"LinearVAE: {latents} latents for x_i with {dim} entries: give fewer latents than entries.")
        super().__init__((dim,), latents, decoder=Linear(), observation=Gaussian(noise_scale))

    @classmethod
    def demo(cls, *, seed: int = 0) -> tuple[Self, Tensor]:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = cls(6, 2, noise_scale=0.6)
        with torch.no_grad():
            model.offset.copy_(torch.linspace(-1.0, 1.0, 6))
        return model, model.simulate(60, seed=seed)[1]

    @classmethod
    def from_dataset(cls, data: Dataset, *, latents: int = 8, seed: int = 0) -> tuple[Self, Tensor]:
        """Random weights; the offset is the data's mean, noise_scale their standard deviation."""
        x = data.x.flatten(1)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = cls(x.shape[1], min(latents, x.shape[1] - 1), noise_scale=float(x.std())).to(x.dtype)
        model.start_at(x)
        return model, x

    def optimum(self, x: Tensor) -> ProbabilisticPCA:
        """The model of this form that maximises log p(x), in closed form."""
        self.check_data(x)
        return ProbabilisticPCA.maximum_likelihood(x, self.latents)

    def linear_gaussian(self) -> LinearGaussian:
        loading = next(iter(self.decoder.parameters()))
        return LinearGaussian(
            prior_loc=torch.zeros_like(self.prior_scale),
            prior_scale=self.prior_scale,
            loading=loading,
            offset=self.offset,
            noise_scale=self.observation.scale.expand(len(loading)),
        )
