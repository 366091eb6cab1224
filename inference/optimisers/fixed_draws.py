"""The sample-average objective: draws frozen, then solved like any deterministic problem."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Any

import numpy as np
import pyro.distributions as dist
import torch
from pyro.poutine.messenger import Messenger
from scipy.optimize import OptimizeResult, minimize
from scipy.sparse.linalg import LinearOperator, cg
from torch import Tensor

from ..programs.traced_pairs import PLATE, is_point_mass, traced_pairs
from .base import Solution, Solver, Target

__all__ = ["FixedDraws", "SampleAverage"]

JUDGES = 8
"""Fresh sets of draws that judge whether the old set was large enough."""


@dataclass(frozen=True)
class FixedDraws(Solver):
    """Minimises −ELBO averaged over one frozen set of draws, by Newton's method in a trust region or by L-BFGS.

    The frozen noise is matched: its sample mean is exactly 0 and, where the draws outnumber the dimensions of a datum's
    latents, its covariance exactly the identity. So the sample average is exact for every quadratic log p(x, h), and with it
    the optimum for a Gaussian target.

    The draws are doubled until they no longer matter: for a fresh set, ½ gᵀH⁻¹g with its gradient g at the optimum of the
    old one is the ELBO that a fit to the fresh set would gain by its own noise; a quarter of gᵀH⁻¹g estimates what the old
    set's noise has cost. The fit ends when that, over eight fresh sets and with two standard errors, is below `tolerance`.

    The guide must draw Gaussians with reparameterised noise: any Gaussian family of this suite, Pyro's AutoNormal,
    AutoDiagonalNormal or AutoMultivariateNormal.

    Args:
        draws: to begin with; by default 30, or, where q correlates dim latents, 2 dim + 2 if that is more: with no more draws
            than dimensions, the average would have no minimum.
        tolerance: nats of the ELBO that the noise of the draws may cost.
        most: draws at which doubling ends in any case.
        newton: whether to use Hessian-vector products, which takes fewer iterations; else L-BFGS, whose iterations cost less.

    `linear_response` gives the covariances that the optimum implies, also of latents that the family holds independent.

    Reference: Giordano, Ingram & Broderick, "Black box variational inference with a deterministic objective" (2024); the
    matched noise after Owen, "Monte Carlo theory, methods and examples", section 8.9.
    """

    draws: int | None = None
    tolerance: float = 0.01
    most: int = 4096
    newton: bool = True

    def __post_init__(self) -> None:
        if self.draws is not None and not 2 <= self.draws <= self.most:
            raise ValueError(f"FixedDraws: draws must be between 2 and most={self.most}, but is {self.draws}.")
        if not self.tolerance > 0:
            raise ValueError(f"FixedDraws: tolerance must be positive, but is {self.tolerance}.")

    def check(self, target: Target) -> None:
        self._correlated(target)

    def solve(self, target: Target, *, steps: int) -> Solution:
        least = max(30, 2 * self._correlated(target) + 2)
        losses: list[float] = []
        draws = least if self.draws is None else self.draws
        while True:
            average = SampleAverage(target, draws)
            callback = partial(_record, losses, 1e-6 * self.tolerance)
            try:
                found = average.minimum(newton=self.newton, iterations=steps - len(losses), callback=callback)
            except _NotFiniteError:
                return Solution.diverged(losses)
            average.set(found.x)
            if not losses:
                losses.append(float(found.fun))
            if len(losses) >= steps:
                return Solution.ran_out(losses)
            cost, error = average.cost_of_noise(found.x)
            if cost + 2 * error < self.tolerance:
                return Solution.met(losses)
            if 2 * draws > self.most:
                reason = (
                    f"ended at {draws} draws, which cost about {cost:.2g} nats, more than its tolerance of {self.tolerance:g}"
                )
                return Solution(losses, reason, converged=False)
            draws *= 2

    @staticmethod
    def _correlated(target: Target) -> int:
        """How many latents the guide correlates. Raises unless it draws Gaussians."""
        with _Frozen(2) as frozen, torch.no_grad():
            traced_pairs(target.model, target.guide, target.args, {}, draws=2)
        return int(frozen.correlated)


class _NotFiniteError(FloatingPointError):
    """The loss or its gradient is not finite."""


class SampleAverage:
    """−ELBO averaged over frozen draws, as scipy wants it: NumPy in float64 over the flat parameters."""

    def __init__(self, target: Target, draws: int) -> None:
        self.target = target
        self.draws = draws
        self.frozen = _Frozen(draws)

    def start(self) -> Any:
        return torch.cat([p.detach().reshape(-1) for p in self.target.parameters]).double().numpy()

    def set(self, flat: Any) -> None:
        parts = torch.from_numpy(np.array(flat)).split([p.numel() for p in self.target.parameters])
        with torch.no_grad():
            for parameter, part in zip(self.target.parameters, parts, strict=True):
                parameter.copy_(part.reshape(parameter.shape))

    def value_and_gradient(self, flat: Any) -> tuple[float, Any]:
        self.set(flat)
        loss = self._loss()
        gradient = _flat(torch.autograd.grad(loss, self.target.parameters))
        if not (loss.isfinite() and gradient.isfinite().all()):
            raise _NotFiniteError
        return float(loss.detach()), gradient.numpy()

    def minimum(self, *, newton: bool, iterations: int, callback: Callable[..., None] | None = None) -> OptimizeResult:
        """The minimum that descent from the parameters' values reaches. Leaves them somewhere on its way."""
        method: dict[str, Any] = {"method": "L-BFGS-B", "options": {"ftol": 0.0, "gtol": 1e-9, "maxiter": iterations}}
        if newton:
            options = {"gtol": 1e-9, "maxiter": iterations}
            method = {"method": "trust-ncg", "hessp": self.curvature, "options": options}
        return minimize(self.value_and_gradient, self.start(), jac=True, callback=callback, **method)

    def curvature(self, flat: Any, direction: Any) -> Any:
        """The Hessian times a direction."""
        self.set(flat)
        gradient = _flat(torch.autograd.grad(self._loss(), self.target.parameters, create_graph=True))
        slope = gradient @ torch.from_numpy(np.array(direction))
        products = torch.autograd.grad(slope, self.target.parameters, materialize_grads=True)
        return _flat(products).numpy()

    def cost_of_noise(self, flat: Any) -> tuple[float, float]:
        """What the noise of as many draws costs, in nats, judged by fresh sets, and the standard error of that."""
        hessian = LinearOperator((len(flat), len(flat)), matvec=lambda v: self.curvature(flat, v.ravel()), dtype=np.float64)
        costs = []
        for _ in range(JUDGES):
            gradient = SampleAverage(self.target, self.draws).value_and_gradient(flat)[1]
            costs.append(0.25 * gradient @ cg(hessian, gradient, rtol=1e-3, atol=1e-6, maxiter=len(flat))[0])
        return float(np.mean(costs)), float(np.std(costs, ddof=1)) / JUDGES**0.5

    def _loss(self) -> Tensor:
        with self.frozen:
            pairs = traced_pairs(self.target.model, self.target.guide, self.target.args, {}, draws=self.draws)
        total = torch.stack([pair.guide.log_prob_sum() - pair.model.log_prob_sum() for pair in pairs]).sum()
        return total / self.draws


class _Frozen(Messenger):
    """Gives every Gaussian site of the guide the same matched noise in each run of `draws` draws."""

    def __init__(self, draws: int) -> None:
        super().__init__()
        self.draws = draws
        self.noise: dict[str, Tensor] = {}
        self.used: dict[str, int] = {}
        self.correlated = 0

    def __enter__(self) -> Any:
        self.used = dict.fromkeys(self.noise, 0)
        super().__enter__()
        return self

    def _pyro_sample(self, msg: Any) -> None:
        fn, name = msg["fn"], msg["name"]
        if msg["done"] or msg["is_observed"] or is_point_mass(fn) or type(fn).__name__ == "_Subsample":
            return
        shape, value = _affine(fn, name)
        if isinstance(fn, dist.MultivariateNormal):
            self.correlated = max(self.correlated, shape[-1])
        vectorised = any(frame.name == PLATE for frame in msg["cond_indep_stack"])
        if name not in self.noise:
            rest = shape[1:] if vectorised else shape
            like = fn.mean
            self.noise[name] = _matched(self.draws, rest, len(fn.event_shape)).to(like)
        row = self.used.get(name, 0)
        self.used[name] = row + 1
        msg["value"] = value(self.noise[name] if vectorised else self.noise[name][row])
        msg["done"] = True


def _affine(fn: Any, name: str) -> tuple[tuple[int, ...], Callable[[Tensor], Tensor]]:
    """The shape of the standard normal noise of a Gaussian, and the map from it to a draw."""
    if isinstance(fn, dist.MultivariateNormal):
        return tuple(fn.shape()), lambda noise: fn.loc + (fn.scale_tril @ noise.unsqueeze(-1)).squeeze(-1)
    if isinstance(fn, dist.LowRankMultivariateNormal):
        factor, rank = fn.cov_factor, fn.cov_factor.shape[-1]

        def draw(noise: Tensor) -> Tensor:
            shared, own = noise[..., :rank], noise[..., rank:]
            return fn.loc + (factor @ shared.unsqueeze(-1)).squeeze(-1) + fn.cov_diag.sqrt() * own

        return (*fn.batch_shape, rank + fn.event_shape[0]), draw
    base = fn
    while isinstance(base, dist.Independent):
        base = base.base_dist
    if isinstance(base, dist.Normal):
        return tuple(fn.shape()), lambda noise: base.loc + base.scale * noise
    raise ValueError(
        f"FixedDraws freezes the noise of Gaussians, but the guide draws {name!r} from {type(fn).__name__}: use a Gaussian "
        "family, or torch's Adam with TraceELBO or StickingTheLanding."
    )


def _matched(draws: int, shape: tuple[int, ...], event_dim: int) -> Tensor:
    """Standard normal noise, shape (draws, *shape), of sample mean 0 and, over the event dimensions, covariance 1.

    With no more draws than dimensions only each variance is 1.
    """
    batch, event = shape[: len(shape) - event_dim], shape[len(shape) - event_dim :]
    noise = torch.randn(draws, prod(batch), prod(event), dtype=torch.float64)
    noise = (noise - noise.mean(0)).transpose(0, 1)
    if draws > prod(event):
        root = torch.linalg.cholesky(noise.mT @ noise / draws)
        noise = torch.linalg.solve_triangular(root.mT, noise, upper=True, left=False)
    else:
        noise = noise / noise.square().mean(-2, keepdim=True).sqrt()
    return noise.transpose(0, 1).reshape(draws, *shape)


def _record(losses: list[float], least: float, intermediate_result: OptimizeResult) -> None:
    """Keeps the loss of each iteration, and ends a solution that has not gained `least` nats in the last six."""
    losses.append(float(intermediate_result.fun))
    if len(losses) > 6 and losses[-7] - losses[-1] < least:
        raise StopIteration


def _flat(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([tensor.reshape(-1) for tensor in tensors]).double()
