"""The best λ that a guide can reach: with its own encoder trained further, and with a separate λ_i for each datum."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import pyro
import torch
from torch import Tensor

from guides import Amortized, Guide

from ..engine.minibatches import Batches
from ..fitting.unseen import Ascent, ascend, log_weights

__all__ = ["EncoderTraining", "Lambdas", "best_lambdas"]


class EncoderTraining(NamedTuple):
    """How a copy of the encoder is trained further."""

    data: tuple[Any, ...]
    steps: int
    lr: float
    batch_size: int | None


class Lambdas(NamedTuple):
    """Three λ for the same data, each of shape (N, family.size), or (family.size,) for global latents."""

    own: Tensor
    """The guide's own."""
    source: Tensor
    """The best of its source: of the encoder if the guide is amortized, else `best`."""
    best: Tensor
    """The best of its family."""


def best_lambdas(
    model: Callable[..., Any], guide: Guide, args: tuple[Any, ...], *, training: EncoderTraining, ascent: Ascent
) -> Lambdas:
    """Optimises λ, and the encoder if there is one, with the model frozen. Call it inside `isolated`, on a guide set up."""
    assert guide.latents is not None
    with torch.no_grad():
        own = guide.lambdas(args[0])
    amortized = isinstance(guide, Amortized)
    source = own
    if isinstance(guide, Amortized) and training.steps:
        source = _trained(model, guide, training)(args[0])
    best = ascend(model, guide.latents, guide.family, source, args, ascent=ascent)
    return Lambdas(own, source if amortized else best, best)


def _trained(model: Callable[..., Any], guide: Amortized, training: EncoderTraining) -> Callable[[Tensor], Tensor]:
    """x → λ of a copy of the guide whose encoder has been trained further."""
    twin = copy.deepcopy(guide)
    assert twin.latents is not None
    parameters = [p.requires_grad_() for p in twin.parameters()]
    adam = torch.optim.Adam(parameters, lr=training.lr)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(adam, training.steps)
    batches = Batches(training.data, training.batch_size)
    with pyro.validation_enabled(False):
        for _ in range(training.steps):
            batch = next(batches).args
            lam = twin.lambdas(batch[0])
            loss = -log_weights(model, twin.latents, twin.family, lam, batch, draws=1, path=True).mean()
            for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters, allow_unused=True), strict=True):
                parameter.grad = gradient
            adam.step()
            decay.step()
    return torch.no_grad()(twin.lambdas)
