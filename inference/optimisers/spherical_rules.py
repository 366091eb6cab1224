"""Points whose weighted mean is the expectation over a standard normal of everything cubic."""

from __future__ import annotations

import torch
from scipy.special import gammaincinv
from torch import Tensor

__all__ = ["SphericalRules"]

REMEMBERED = 12
"""Rotations that a new one keeps clear of."""
TURNS, TURN = 30, 0.4
"""Descents that turn a rotation away from those, and their length."""


class SphericalRules:
    """Rules for E f(ε), ε ~ N(0, I): 0 and ± r o_i, for the rows o_i of a rotation, i = 1 … dim, and a radius r.

    Each rule by itself is unbiased, and exact where f is cubic: its rotation is uniform, and r² is of the chi-squared with
    dim + 2 degrees of freedom. Together they do better than independent ones, since what is left is of fourth order:

    - radii come in pairs, at the quantiles u and 1 − u;
    - a rotation is turned down the slope of Σ (o_i · a_j)⁴ over the arms a_j of the rules before it, the part of the error
      that two rules share: for mutually unbiased bases it is a third of that for independent ones. The descent sees inner
      products alone, so that a rotation stays uniform.

    Args:
        batch: rules are drawn for each element by itself.
        dim: of ε.

    Reference: Genz & Monahan, "Stochastic integration rules for infinite regions" (1998), degree 3; Delsarte, Goethals &
    Seidel, "Spherical codes and designs" (1977), for Σ (o · a)⁴.
    """

    def __init__(self, batch: tuple[int, ...], dim: int) -> None:
        self.batch, self.dim = batch, dim
        self.arms: list[Tensor] = []
        self.quantile: Tensor | None = None

    def draw(self, rules: int) -> tuple[Tensor, Tensor]:
        """The mean of the next rules: K = 2 dim rules + 1 points in the order 0, arms, − arms, and their weights.

        Returns:
            points, shape (K, *batch, dim); weights, shape (K, *batch), whose sum over K is 1.
        """
        arms, squares = zip(*((self._rotation(), self._square()) for _ in range(rules)), strict=True)
        points = torch.cat([square.sqrt()[..., None, None] * arm for arm, square in zip(arms, squares, strict=True)], -2)
        points = points.movedim(-2, 0)
        weight = torch.stack([0.5 / (rules * square) for square in squares]).repeat_interleave(self.dim, 0)
        centre = 1 - 2 * weight.sum(0, keepdim=True)
        return torch.cat([torch.zeros_like(points[:1]), points, -points]), torch.cat([centre, weight, weight])

    def _rotation(self) -> Tensor:
        """Its rows are the arms, shape (*batch, dim, dim)."""
        rotation = torch.linalg.qr(torch.randn(*self.batch, self.dim, self.dim, dtype=torch.float64)).Q
        if self.arms and self.dim > 1:
            rotation = _clear(rotation, torch.cat(self.arms, -2))
        self.arms = [*self.arms[1 - REMEMBERED :], rotation]
        return rotation

    def _square(self) -> Tensor:
        """r², shape (*batch)."""
        if self.quantile is None:
            quantile = self.quantile = torch.rand(self.batch, dtype=torch.float64)
        else:
            quantile, self.quantile = 1 - self.quantile, None
        edge = torch.finfo(quantile.dtype).eps
        return 2 * torch.as_tensor(gammaincinv(self.dim / 2 + 1, quantile.clamp(edge, 1 - edge).numpy()))


def _clear(rotation: Tensor, arms: Tensor) -> Tensor:
    """The rotation, turned away from the arms; the rows stay orthonormal by Gram and Schmidt."""
    step = TURN * rotation.shape[-1] ** 2 / (3 * arms.shape[-2])
    for _ in range(TURNS):
        slope = (rotation @ arms.mT) ** 3 @ arms
        rotation = torch.linalg.qr((rotation - step * slope).mT).Q.mT
    return rotation
