"""Gradient descent without a learning rate: the distance from the start sets the step size."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from models.arguments import number

__all__ = ["DoG", "DoWG", "JointStep"]


class JointStep(Optimizer):
    """One step size for all parameters, from the distance r_t = max_{s ≤ t} ‖θ_s − θ_0‖ and the gradients g_s so far.

    A step is tensor arithmetic on the device of the parameters and reads no number out, so an engine can capture it. The
    state holds θ_0 for each parameter; r_t and the sum over s are stored with the first parameter.

    Args:
        params: the parameters to optimise.
        lr: not used; accepted because `fit` passes one to every optimiser. A schedule multiplies the step.
        reach: r_0 as a fraction of 1 + ‖θ_0‖. Any value far below the distance to the optimum will do.
    """

    def __init__(self, params: Iterable[Tensor], lr: float | None = None, *, reach: float = 1e-4) -> None:
        owner = type(self).__name__
        reach = number(f"{owner}: reach", reach, above=0)
        if lr is not None:
            number(f"{owner}: lr", lr)
        params = list(params) if isinstance(params, Iterable) and not hasattr(params, "ndim") else []
        if not params or not all(isinstance(one, Tensor | dict) and (isinstance(one, dict) or one.is_leaf) for one in params):
            raise TypeError(f"{owner}: params must be parameters to optimise, at least one, all of them leaves.")
        super().__init__(params, {"lr": 1.0, "reach": reach})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Takes one step. Parameters without a gradient do not move."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        parameters = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        if not parameters:
            return loss
        for parameter in parameters:
            if "initial" not in self.state[parameter]:
                self.state[parameter]["initial"] = parameter.detach().clone()
        shared = self.state[self.param_groups[0]["params"][0]]
        if "reached" not in shared:
            size = _norm([self.state[p]["initial"] for p in parameters])
            shared["reached"] = self.param_groups[0]["reach"] * (1 + size)
            shared["total"] = torch.zeros_like(shared["reached"])
        distance = _norm([p - self.state[p]["initial"] for p in parameters])
        shared["reached"].copy_(torch.maximum(shared["reached"], distance))
        gradient = _norm([p.grad for p in parameters if p.grad is not None])
        size = self.rate(shared["reached"], gradient, shared["total"])
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.sub_(group["lr"] * size.to(parameter.dtype) * parameter.grad)
        return loss

    @abstractmethod
    def rate(self, reached: Tensor, gradient: Tensor, total: Tensor) -> Tensor:
        """The step size from r_t and ‖g_t‖, all of shape (). Adds this step to `total`, the sum over s, in place."""


class DoG(JointStep):
    """Distance over gradients: η_t = r_t / √(Σ_{s ≤ t} ‖g_s‖²).

    Reference: Ivgi, Hinder & Carmon, "DoG is SGD's best friend: a parameter-free dynamic step size schedule" (2023), eq. 1.
    """

    def rate(self, reached: Tensor, gradient: Tensor, total: Tensor) -> Tensor:
        total.add_(gradient.square())
        return reached / total.sqrt().clamp(min=torch.finfo(total.dtype).tiny)


class DoWG(JointStep):
    """Distance over weighted gradients: η_t = r_t² / √(Σ_{s ≤ t} r_s² ‖g_s‖²), which discounts gradients near θ_0.

    Reference: Khaled, Mishchenko & Jin, "DoWG unleashed: an efficient universal parameter-free gradient descent method"
    (2023), algorithm 1.
    """

    def rate(self, reached: Tensor, gradient: Tensor, total: Tensor) -> Tensor:
        total.add_((reached * gradient).square())
        return reached.square() / total.sqrt().clamp(min=torch.finfo(total.dtype).tiny)


def _norm(tensors: list[Tensor]) -> Tensor:
    """The Euclidean norm of all tensors together, in the widest of their dtypes."""
    return torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(t) for t in tensors]))
