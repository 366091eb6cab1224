"""One λ_i for each datum, an affine function of the latents shared by all data."""

from __future__ import annotations

import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor

from .local import Local, rows

__all__ = ["Structured"]


class Structured(Local):
    """q(shared) ∏_i q_{λ_i(shared)}(h_i), where λ_i(shared) = λ_i + coupling_i · (shared, standardised).

    In a hierarchical posterior local and shared latents depend on each other: if the groups vary widely, each group is
    uncertain. A `Local` guide makes them independent. Here each number of λ_i is an affine function of the unconstrained
    shared draw, standardised by the mean and standard deviation of its q. Without shared latents the guide is `Local`.

    Args:
        model: a Pyro program with latents inside the data plate, and outside it for a difference from `Local`.
        family: the shape of each local block.
        plate: name of the model's data plate.
        shared: the family over the latents outside the data plate; by default `FullRank`.

    References: Hoffman & Blei, "Structured stochastic variational inference" (2015); Tan, Bhaskaran & Nott, "Conditionally
    structured variational Gaussian approximation with importance weights" (2020).
    """

    coupling: Tensor
    """Coefficients of each λ_i, shape (N, family.size, shared dim)."""

    def make_parameters(self, x: Tensor) -> None:
        super().make_parameters(x)
        if self.shared is not None:
            self.coupling = torch.nn.Parameter(torch.zeros(*self.table.shape, self.shared.dim))

    def q_given(self, x: Tensor, index: Tensor | None, shared: Tensor) -> TorchDistribution:
        return self.family(self.lambdas_given(x, index, shared))

    def lambdas_given(self, x: Tensor, index: Tensor | None, shared: Tensor) -> Tensor:
        table, coupling = (t if index is None else rows(t, index) for t in (self.table, self.coupling))
        return table + (coupling * self._standardised(shared).unsqueeze(-2)).sum(-1)

    def _standardised(self, shared: Tensor) -> Tensor:
        q = self.q_shared()
        try:
            return (shared - q.mean) / q.stddev
        except NotImplementedError:
            return shared
