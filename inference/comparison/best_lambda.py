"""The best λ that a guide can reach: with its own encoder trained further, and with a separate λ_i for each datum."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from guides import Amortized, Guide

from ..engine.minibatches import Batches
from ..evidence.joint_family import JointFamily
from ..evidence.packed_guide import PackedGuide, packed_guide
from ..evidence.packed_model import PackedModel
from ..fitting.unseen import Ascent, ascend, log_weights
from ..programs.isolation import without_validation

__all__ = ["EncoderTraining", "Stages", "best_stages"]


class EncoderTraining(NamedTuple):
    """How a copy of the encoder is trained further."""

    data: tuple[Any, ...] | None
    """None for the data of the guide."""
    steps: int
    lr: float
    batch_size: int | None


class Stages(NamedTuple):
    """Three q for the same data."""

    own: PackedGuide
    """The guide's own."""
    source: PackedGuide
    """The best of its source: of the encoder if the guide is amortized, else `best`."""
    best: PackedGuide
    """The best of its family."""


def best_stages(
    model: Callable[..., Any], guide: Guide, args: tuple[Any, ...], *, training: EncoderTraining, ascent: Ascent
) -> Stages:
    """Optimises λ, and the encoder if there is one, with the model frozen. Call it inside `isolated`, on a guide set up.

    Raises:
        ValueError: if the encoder is to be trained on other data, or on minibatches, and latents are shared between data.
    """
    with torch.no_grad():
        own = packed_guide(model, guide, args)
    source = own
    if isinstance(guide, Amortized) and training.steps:
        twin = _trained(model, guide, own, args, training)
        with torch.no_grad():
            source = packed_guide(model, twin, args)
    best = source._replace(lam=ascend(PackedModel(model, source.latents, args), source.family, source.lam, ascent=ascent))
    return Stages(own, source if isinstance(guide, Amortized) else best, best)


def _trained(
    model: Callable[..., Any], guide: Amortized, own: PackedGuide, args: tuple[Any, ...], training: EncoderTraining
) -> Amortized:
    """A copy of the guide whose encoder has been trained further."""
    if not own.per_datum and not (training.data is None and training.batch_size is None):
        raise ValueError(
            "gaps: the data depend on one another here, by a latent that they share, so the encoder can only be trained on "
            "all of x at once: leave out train and batch_size."
        )
    twin = copy.deepcopy(guide)
    whole = None if own.per_datum else JointFamily(twin, args)
    parameters = [p.requires_grad_() for p in twin.parameters()]
    adam = torch.optim.Adam(parameters, lr=training.lr)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(adam, training.steps)
    batches = Batches(args if training.data is None else training.data, training.batch_size)
    with without_validation():
        for _ in range(training.steps):
            batch = next(batches).args
            lam = twin.lambdas(batch[0]) if whole is None else whole.start
            joint = PackedModel(model, own.latents, batch)
            loss = -log_weights(joint, whole or twin.family, lam, draws=1, path=whole is None).mean()
            for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters, allow_unused=True), strict=True):
                parameter.grad = gradient
            adam.step()
            decay.step()
    return twin
