"""log p(x, h) of a Pyro model as a function of an unconstrained vector, with gradients, vectorised over many vectors."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pyro
import torch
from torch import Tensor

from guides.latents import Latents

from .bound import unwrap
from .isolation import isolated
from .mapping import Mapped, NotMappedError, mappable
from .validation import as_args, naming

__all__ = ["LogJoint", "gradient"]


class LogJoint:
    """u ↦ log p(x, h(u)) + log |det ∂h/∂u| for the packed unconstrained latents u: the log density that samplers see, in nats.

    Args:
        model: any Pyro program with continuous latents whose supports do not depend on one another. One that cannot be mapped
            over vectors is called once for each.
        x: the data, or a tuple of the model's arguments.
        chunk: vectors evaluated by one vectorised call.
    """

    def __init__(self, model: Callable[..., Any], x: Tensor | tuple[Any, ...], *, chunk: int = 1000) -> None:
        self.model = model
        self.args = as_args(x)
        self.chunk = chunk
        with isolated(0), naming("model", model, self.args):
            self.latents = Latents(unwrap(model), self.args, {}, plate=None)
        self.dim = self.latents.dim
        self._density = Mapped(torch.func.vmap(self.at), self.at)
        self._score = Mapped(torch.func.vmap(torch.func.grad(self.at)), lambda u: gradient(self.at, u))

    def __call__(self, u: Tensor) -> Tensor:
        """The log density at each u, shape (K, dim): shape (K,). Differentiable."""
        return self._over(self._density, u)

    def score(self, u: Tensor) -> Tensor:
        """The gradient of the log density at each u, shape (K, dim): shape (K, dim). Detached from the model's parameters."""
        return self._over(self._score, u.detach()).detach()

    def hessian(self, u: Tensor) -> Tensor:
        """The matrix of second derivatives at one u, shape (dim,): shape (dim, dim)."""
        with self.evaluated():
            try:
                with mappable():
                    return torch.func.jacrev(torch.func.grad(self.at))(u.detach()).detach()
            except NotMappedError:
                found: Tensor = torch.autograd.functional.hessian(self.at, u.detach())
                return found.detach()

    def constrain(self, u: Tensor) -> dict[str, Tensor]:
        """The latents at each u, shape (K, dim): for each site shape (K, *shape)."""
        names = [site.name for site in self.latents.sites]

        def values(v: Tensor) -> tuple[Tensor, ...]:
            found = self.latents.constrain(v)[0]
            return tuple(found[name] for name in names)

        parts = Mapped(torch.func.vmap(values), values)(u)
        return {name: value.detach() for name, value in zip(names, parts, strict=True)}

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

    def _over(self, function: Mapped, u: Tensor) -> Tensor:
        with self.evaluated():
            return torch.cat([function(part)[0] for part in u.split(self.chunk)])


def gradient(function: Callable[[Tensor], Tensor], point: Tensor) -> Tensor:
    """The gradient of the sum of a function at one point, by plain autograd: zero where the function does not depend on it."""
    with torch.enable_grad():
        leaf = point.detach().clone().requires_grad_()
        total = function(leaf).sum()
        if not total.requires_grad:
            return torch.zeros_like(leaf)
        (found,) = torch.autograd.grad(total, leaf, allow_unused=True)
    return torch.zeros_like(leaf) if found is None else found
