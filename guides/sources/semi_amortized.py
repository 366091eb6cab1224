"""λ_i from an encoder, refined by a few gradient steps for each datum."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
import torch
from torch import Tensor, nn

from ..arguments import count, flag, number
from ..families import Family
from .amortized import Amortized

__all__ = ["SemiAmortized"]

VALIDATION = ("validate_distributions_pyro", "validate_distributions_torch", "validate_infer", "validate_poutine")
"""Settings that cost time in every call. `pyro.validation_enabled` would not restore each of them to what it was."""


class SemiAmortized(Amortized):
    """∏_i q_{λ_i}(h_i), where λ_i starts at the encoder's λ(x_i) and ascends the ELBO of datum i for some steps.

    The ELBO of datum i is estimated by `draws` draws, with the same noise for every step and every datum. Each datum has its
    own step size: it is doubled after a step that raises the ELBO, and divided by four after one that does not, which is
    undone. No step is longer than 1 in λ. So λ_i depends on x_i alone, is the same in every call, and is never worse than the
    encoder's on these draws. A fit differentiates through the steps.

    Args:
        model: a Pyro program with latents inside the data plate and x as its first and only data argument.
        family: the shape of each q; it must be reparameterised.
        encoder: as for `Amortized`.
        steps: gradient steps for each datum.
        lr: first step size.
        draws: draws of the ELBO that the steps ascend. Few draws are overfitted: 4 make a good λ_i worse on other draws.
        training: whether λ_i is refined during a fit. If not, it is the encoder's while gradients are recorded, and refined
            otherwise (`inference.elbo`, `iwae`, `gaps`, draws).
        plate: name of the model's data plate.

    Raises:
        ValueError: if steps, lr or draws is not positive, or the family has no reparameterised draws.

    Reference: Kim, Wiseman, Miller, Sontag & Rush, "Semi-amortized variational autoencoders" (2018).
    """

    def __init__(
        self,
        model: Callable[..., Any],
        family: Family,
        encoder: nn.Module | Callable[[tuple[int, ...], int], nn.Module] | None = None,
        *,
        steps: int = 5,
        lr: float = 0.01,
        draws: int = 32,
        training: bool = True,
        plate: str = "data",
    ) -> None:
        super().__init__(model, family, encoder, plate=plate)
        steps, draws = count("SemiAmortized: steps", steps, least=0), count("SemiAmortized: draws", draws)
        if steps == 0:
            raise ValueError("SemiAmortized: steps must be at least 1, but is 0: without steps, use Amortized.")
        lr, training = number("SemiAmortized: lr", lr, above=0), flag("SemiAmortized: training", training)
        if family.discrete:
            raise ValueError(
                f"SemiAmortized: {type(family).__name__} has no gradient with respect to its draws: use Amortized."
            )
        self.steps = steps
        self.lr = lr
        self.draws = draws
        self.refine_training = training

    def lambdas(self, x: Tensor, index: Tensor | None = None) -> Tensor:
        lam = super().lambdas(x, index)
        if torch.is_grad_enabled() and not self.refine_training:
            return lam
        return self._refined(lam, x)

    def _refined(self, lam: Tensor, x: Tensor) -> Tensor:
        """λ after the steps, shape (B, family.size); differentiable in `lam` while gradients are recorded."""
        through = torch.is_grad_enabled()
        with torch.enable_grad(), torch.random.fork_rng(), pyro.settings.context(**dict.fromkeys(VALIDATION, False)):
            current = lam
            value, gradient = self._value_and_gradient(current, x, through=through)
            rate = torch.full_like(value, self.lr)
            for _ in range(self.steps):
                step = rate.unsqueeze(-1) * gradient
                candidate = current + step / step.norm(dim=-1, keepdim=True).clamp(min=1.0)
                other, slope = self._value_and_gradient(candidate, x, through=through)
                better = other > value
                current = torch.where(better.unsqueeze(-1), candidate, current)
                gradient = torch.where(better.unsqueeze(-1), slope, gradient)
                value = torch.where(better, other, value)
                rate = torch.where(better, 2.0 * rate, 0.25 * rate)
        return current if through else current.detach()

    def _value_and_gradient(self, lam: Tensor, x: Tensor, *, through: bool) -> tuple[Tensor, Tensor]:
        """The ELBO of each datum, shape (B,), and its gradient, with the same noise in every call."""
        assert self.latents is not None
        torch.manual_seed(0)
        leaf = lam if through and lam.requires_grad else lam.detach().requires_grad_()
        h = torch.func.vmap(lambda one: self.family(one).rsample((self.draws,)), out_dims=1, randomness="same")(leaf)
        elbo = (self.latents.log_joint(self.model, h, (x,)) - self.family(leaf).log_prob(h)).mean(0)
        (gradient,) = torch.autograd.grad(elbo.sum(), leaf, create_graph=through)
        return elbo.detach(), gradient
