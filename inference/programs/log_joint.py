"""log p(x, h) of a Pyro model as a function of an unconstrained vector, with gradients, vectorised over many vectors."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pyro
import torch
from torch import Tensor
from torch.linalg import LinAlgError  # type: ignore[attr-defined]

from guides.latents import Latents

from .bound import unwrap
from .isolation import isolated
from .mapped import Mapped
from .validation import as_args

__all__ = ["LogJoint"]


class LogJoint:
    """u ↦ log p(x, h(u)) + log |det ∂h/∂u| for the packed unconstrained latents u: the log density that samplers see, in nats.

    Args:
        model: any Pyro program with continuous latents whose supports do not depend on one another.
        x: the data, or a tuple of the model's arguments.
        chunk: vectors evaluated by one vectorised call.
    """

    def __init__(self, model: Callable[..., Any], x: Tensor | tuple[Any, ...], *, chunk: int = 1000) -> None:
        self.model = model
        self.args = as_args(x)
        self.chunk = chunk
        with isolated(0):
            self.latents = Latents(unwrap(model), self.args, {}, plate=None)
        self.dim = self.latents.dim
        self._density = Mapped(self.at, model)
        self._both = Mapped(_swapped(torch.func.grad_and_value(self.at)), model, each=self.value_and_score)
        self._constrain = Mapped(lambda u: self.latents.constrain(u)[0], model)

    def __call__(self, u: Tensor) -> Tensor:
        """The log density at each u, shape (K, dim): shape (K,). Differentiable."""
        with self.evaluated():
            return torch.cat([self._density(part) for part in u.split(self.chunk)])

    def score(self, u: Tensor) -> Tensor:
        """The gradient of the log density at each u, shape (K, dim): shape (K, dim). Detached from the model's parameters."""
        with self.evaluated():
            return torch.cat([self.values_and_scores(part)[1] for part in u.split(self.chunk)])

    def values_and_scores(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """The log density and its gradient at each u, shape (K, dim): shapes (K,) and (K, dim). Call it within `evaluated`."""
        value, score = self._both(u.detach())
        return value.detach(), score.detach()

    def value_and_score(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """The same at one u, shape (dim,): shapes () and (dim,)."""
        with torch.enable_grad():
            leaf = u.detach().requires_grad_()
            value = self.at(leaf)
            if not value.requires_grad:
                return value, torch.zeros_like(u)
            (score,) = torch.autograd.grad(value, leaf, allow_unused=True, materialize_grads=True)
        return value.detach(), score.detach()

    def hessian(self, u: Tensor) -> Tensor:
        """The matrix of second derivatives at one u, shape (dim,): shape (dim, dim)."""
        with self.evaluated():
            try:
                return torch.func.jacrev(torch.func.grad(self.at))(u.detach()).detach()
            except LinAlgError:
                raise
            except Exception:
                # Slower, but for programs that torch.func cannot transform.
                return torch.autograd.functional.hessian(self.at, u.detach()).detach()

    def constrain(self, u: Tensor) -> dict[str, Tensor]:
        """The latents at each u, shape (K, dim): for each site shape (K, *shape)."""
        return {name: value.detach() for name, value in self._constrain(u).items()}

    def unconstrain(self, h: Mapping[str, Tensor]) -> Tensor:
        """The unconstrained vectors of K draws of the latents: shape (K, dim)."""
        return self.latents.pack(h)

    def at(self, u: Tensor, args: tuple[Any, ...] | None = None) -> Tensor:
        """The log density at one u, shape (dim,): shape (). Differentiable; transform it by torch.func within `evaluated`.

        Args:
            u: the packed unconstrained latents.
            args: other data of the same shape; by default those of this object.
        """
        return self.latents.log_joint(self.model, u, self.args if args is None else args)

    @contextmanager
    def evaluated(self) -> Iterator[None]:
        """Within it `at` may be transformed by torch.func: nothing global is changed, and by then all parameters exist."""
        # Checks of values branch on data, which vmap cannot; nor can it make a parameter.
        with isolated(0), pyro.validation_enabled(False):
            with torch.no_grad():
                self.at(torch.zeros(self.dim, dtype=self.latents.dtype))
            yield


def _swapped(function: Callable[[Tensor], tuple[Tensor, Tensor]]) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """The two results in the other order."""
    return lambda u: function(u)[::-1]
