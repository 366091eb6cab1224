"""The sample-average objective: the draws are frozen, then −ELBO is minimised as a deterministic function."""

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
from pyro.poutine.util import site_is_subsample
from scipy.optimize import OptimizeResult, minimize
from scipy.sparse.linalg import LinearOperator, cg
from torch import Tensor

from ..programs.arguments import check_fields
from ..programs.traced_pairs import PLATE, is_point_mass, traced_pairs
from .base import Solution, Solver, SolverTask

__all__ = ["FixedDraws", "SampleAverage", "flattened"]

DEFAULT_DRAWS = 30
"""As in the experiments of the reference. More by default if q correlates more than 14 latents."""
FRESH_SETS = 8
"""Sets of draws that estimate the cost of the noise: their mean has a standard error of about a third of their spread."""
MIN_GAIN = 1e-6
"""Fraction of the tolerance that `STALLED` iterations must gain together: far less than the noise of the draws may cost."""
STALLED = 6
"""A trust region may reject a few steps in a row, so a single iteration without gain does not end a minimisation."""


@dataclass(frozen=True)
class FixedDraws(Solver):
    """Minimises −ELBO averaged over one frozen set of draws, by Newton's method in a trust region or by L-BFGS.

    The frozen noise is moment-matched: its sample mean is exactly 0 and, if there are more draws than dimensions of a datum's
    latents, its sample covariance is exactly the identity. So the sample average is exact for every quadratic log p(x, h), and
    so is the optimum for a Gaussian target.

    The number of draws is doubled until their noise costs little. At the optimum of one set, a fresh set of as many draws has
    the gradient g and ½ gᵀH⁻¹g nats to gain, H the Hessian of the first set. The noise of both sets contributes equally to
    g, so the noise of the first set has cost half of that gain, ¼ gᵀH⁻¹g nats. The fit ends when the mean of this cost over
    `FRESH_SETS` fresh sets plus two standard errors is below `tolerance`.

    The guide must draw Gaussians with reparameterised noise: any Gaussian family of this suite, Pyro's AutoNormal,
    AutoDiagonalNormal or AutoMultivariateNormal.

    Args:
        draws: initial number of draws; by default 30, or 2 dim + 2 if that is more and q correlates dim latents: with no more
            draws than dimensions the average would have no minimum.
        tolerance: nats of the ELBO that the noise of the draws may cost.
        max_draws: number of draws that doubling does not exceed.
        newton: whether to use Hessian-vector products, which takes fewer iterations; else L-BFGS, whose iterations cost less.

    `linear_response` gives the covariances implied by the optimum, also between latents that the family holds independent.

    Reference: Giordano, Ingram & Broderick, "Black box variational inference with a deterministic objective" (2024); for the
    matched noise Owen, "Monte Carlo theory, methods and examples", section 8.9.
    """

    draws: int | None = None
    tolerance: float = 0.01
    max_draws: int = 4096
    newton: bool = True

    def __post_init__(self) -> None:
        check_fields(self)
        if self.draws is not None and not 2 <= self.draws <= self.max_draws:
            raise ValueError(f"FixedDraws: draws must be between 2 and max_draws={self.max_draws}, but is {self.draws}.")
        if not self.tolerance > 0:
            raise ValueError(f"FixedDraws: tolerance must be positive, but is {self.tolerance}.")

    def check(self, task: SolverTask) -> None:
        self._correlated(task)

    def solve(self, task: SolverTask, *, steps: int) -> Solution:
        default = max(DEFAULT_DRAWS, 2 * self._correlated(task) + 2)
        losses: list[float] = []
        draws = default if self.draws is None else self.draws
        while True:
            average = SampleAverage(task, draws)
            callback = partial(_record, losses, MIN_GAIN * self.tolerance)
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
            if 2 * draws > self.max_draws:
                reason = (
                    f"ended at {draws} draws, which cost about {cost:.2g} nats, more than its tolerance of {self.tolerance:g}"
                )
                return Solution(losses, reason, converged=False)
            draws *= 2

    @staticmethod
    def _correlated(task: SolverTask) -> int:
        """The number of latents that the guide correlates. Raises unless the guide draws Gaussians."""
        with _FrozenNoise(2) as frozen, torch.no_grad():
            traced_pairs(task.model, task.guide, task.args, {}, draws=2)
        return int(frozen.correlated)


class _NotFiniteError(FloatingPointError):
    """The loss or its gradient is not finite."""


class SampleAverage:
    """−ELBO averaged over frozen draws, as a function for scipy: of the flat parameters, NumPy in float64.

    Every method that takes `flat`, shape (p,), sets the parameters to it.
    """

    def __init__(self, task: SolverTask, draws: int) -> None:
        self.task = task
        self.draws = draws
        self.frozen = _FrozenNoise(draws)

    def start(self) -> Any:
        """The current parameters, flat."""
        return flattened([p.detach() for p in self.task.parameters])

    def set(self, flat: Any) -> None:
        parts = torch.from_numpy(np.array(flat)).split([p.numel() for p in self.task.parameters])
        with torch.no_grad():
            for parameter, part in zip(self.task.parameters, parts, strict=True):
                parameter.copy_(part.reshape(parameter.shape))

    def value_and_gradient(self, flat: Any) -> tuple[float, Any]:
        self.set(flat)
        loss = self._loss()
        gradient = flattened(torch.autograd.grad(loss, self.task.parameters))
        if not (loss.isfinite() and np.isfinite(gradient).all()):
            raise _NotFiniteError
        return float(loss.detach()), gradient

    def minimum(self, *, newton: bool, iterations: int, callback: Callable[..., None] | None = None) -> OptimizeResult:
        """The minimum found by descent from the current parameters. Leaves them at the last point that was evaluated."""
        method: dict[str, Any] = {"method": "L-BFGS-B", "options": {"ftol": 0.0, "gtol": 1e-9, "maxiter": iterations}}
        if newton:
            options = {"gtol": 1e-9, "maxiter": iterations}
            method = {"method": "trust-ncg", "hessp": self.curvature, "options": options}
        return minimize(self.value_and_gradient, self.start(), jac=True, callback=callback, **method)

    def curvature(self, flat: Any, direction: Any) -> Any:
        """The product of the Hessian at `flat` with a direction, shape (p,)."""
        self.set(flat)
        gradients = torch.autograd.grad(self._loss(), self.task.parameters, create_graph=True)
        slope = _joined(gradients) @ torch.from_numpy(np.array(direction))
        return flattened(torch.autograd.grad(slope, self.task.parameters, materialize_grads=True))

    def hessian(self, flat: Any) -> LinearOperator:
        """The Hessian at `flat` as a linear operator of shape (p, p)."""
        size = len(flat)
        return LinearOperator((size, size), matvec=lambda v: self.curvature(flat, v.ravel()), dtype=np.float64)

    def cost_of_noise(self, flat: Any) -> tuple[float, float]:
        """Estimates the ELBO lost at the optimum `flat` to the noise of the draws: mean and standard error, in nats."""
        hessian = self.hessian(flat)
        costs = []
        for _ in range(FRESH_SETS):
            gradient = SampleAverage(self.task, self.draws).value_and_gradient(flat)[1]
            costs.append(0.25 * gradient @ cg(hessian, gradient, rtol=1e-3, atol=1e-6, maxiter=len(flat))[0])
        return float(np.mean(costs)), float(np.std(costs, ddof=1)) / FRESH_SETS**0.5

    def _loss(self) -> Tensor:
        with self.frozen:
            pairs = traced_pairs(self.task.model, self.task.guide, self.task.args, {}, draws=self.draws)
        total = torch.stack([pair.guide.log_prob_sum() - pair.model.log_prob_sum() for pair in pairs]).sum()
        return total / self.draws


class _FrozenNoise(Messenger):
    """Gives every Gaussian site of the guide the same moment-matched noise in each run of `draws` draws."""

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
        if msg["done"] or msg["is_observed"] or is_point_mass(fn) or site_is_subsample(msg):
            return
        shape, draw = _affine(fn, name)
        if isinstance(fn, dist.MultivariateNormal):
            self.correlated = max(self.correlated, shape[-1])
        vectorised = any(frame.name == PLATE for frame in msg["cond_indep_stack"])
        if name not in self.noise:
            own_shape = shape[1:] if vectorised else shape
            self.noise[name] = _matched(self.draws, own_shape, len(fn.event_shape)).to(fn.mean)
        row = self.used.get(name, 0)
        self.used[name] = row + 1
        msg["value"] = draw(self.noise[name] if vectorised else self.noise[name][row])
        msg["done"] = True


def _affine(fn: Any, name: str) -> tuple[tuple[int, ...], Callable[[Tensor], Tensor]]:
    """The shape of the standard normal noise of a Gaussian, and the map from noise to a draw."""
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
    """Standard normal noise, shape (draws, *shape), with sample mean 0 and sample covariance 1 over the event dimensions.

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


def _record(losses: list[float], min_gain: float, intermediate_result: OptimizeResult) -> None:
    """Keeps the loss of each iteration. Ends a minimisation that gained less than `min_gain` nats in `STALLED` iterations."""
    losses.append(float(intermediate_result.fun))
    if len(losses) > STALLED and losses[-STALLED - 1] - losses[-1] < min_gain:
        raise StopIteration


def flattened(tensors: Sequence[Tensor]) -> Any:
    """All tensors as one NumPy vector in float64."""
    return _joined(tensors).numpy()


def _joined(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([tensor.reshape(-1) for tensor in tensors]).double()
