"""Gradient descent without a learning rate: the distance gone so far sets the step."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

__all__ = ["DoG", "DoWG", "JointStep"]


class JointStep(Optimizer):
    """One step size for all parameters, from the distance r_t = max_{s ≤ t} ‖θ_s − θ_0‖ and the gradients g_s so far.

    All of a step is tensor arithmetic on the device of the parameters: nothing is read out, so that it can be captured. The
    state is θ_0 of each parameter, and r and the sum over s with the first parameter.

    Args:
        params: what to optimise.
        lr: not used. It is taken because `fit` passes one to every optimiser; a schedule multiplies the step.
        reach: r_0, as a part of 1 + ‖θ_0‖. It need only be far too small.
    """

    def __init__(self, params: Iterable[Tensor], lr: float | None = None, *, reach: float = 1e-4) -> None:
        if not reach > 0:
            raise ValueError(f"{type(self).__name__}: reach must be positive, but is {reach}.")
        super().__init__(params, {"lr": 1.0, "reach": reach})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Takes one step. Parameters without a gradient stay as they are."""
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
        """The step size from r_t and ‖g_t‖, all of shape (); adds to the `total` over the steps so far."""


class DoG(JointStep):
    """Distance over gradients: η_t = r_t / √(Σ_{s ≤ t} ‖g_s‖²).

    Reference: Ivgi, Hinder & Carmon, "DoG is SGD's best friend: a parameter-free dynamic step size schedule" (2023), eq. 1.
    """

    def rate(self, reached: Tensor, gradient: Tensor, total: Tensor) -> Tensor:
        total.add_(gradient.square())
        return reached / total.sqrt().clamp(min=torch.finfo(total.dtype).tiny)


class DoWG(JointStep):
    """Distance over weighted gradients: η_t = r_t² / √(Σ_{s ≤ t} r_s² ‖g_s‖²), which forgets the gradients near θ_0.

    Reference: Khaled, Mishchenko & Jin, "DoWG unleashed: an efficient universal parameter-free gradient descent method"
    (2023), algorithm 1.
    """

    def rate(self, reached: Tensor, gradient: Tensor, total: Tensor) -> Tensor:
        total.add_((reached * gradient).square())
        return reached.square() / total.sqrt().clamp(min=torch.finfo(total.dtype).tiny)


def _norm(tensors: list[Tensor]) -> Tensor:
    """The norm of all these tensors as one vector, in the widest of their dtypes."""
    return torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(t) for t in tensors]))
