"""A linear encoder."""

from __future__ import annotations

from .mlp import MLP

__all__ = ["Linear"]


class Linear(MLP):
    """Spec of an affine λ_i: optimal if the posterior's mean is linear in x_i and its covariance constant."""

    def __init__(self) -> None:
        super().__init__(hidden=())
