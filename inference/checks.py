"""What is checked before any work starts. Every message says what is wrong, where, what was expected and what to do."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from pyro import poutine
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor, nn

from guides import Guide

from .isolation import unscoped

__all__ = ["arguments", "check_data", "check_minibatch", "check_pair", "check_positive"]


def arguments(x: Tensor | tuple[Any, ...]) -> tuple[Any, ...]:
    """The positional arguments of one call of the model: a tensor stands for itself alone."""
    return x if isinstance(x, tuple) else (x,)


def check_positive(**options: float) -> None:
    """Raises a ValueError for the first option that is not positive."""
    for name, value in options.items():
        if not value > 0:
            raise ValueError(f"{name} must be positive, but is {value}.")


def check_data(model: Callable[..., Any], args: tuple[Any, ...]) -> None:
    """Raises unless the data are what the model can have produced; for a plain Pyro model, unless they are finite."""
    model = unscoped(model)
    if hasattr(model, "check_data"):
        model.check_data(*args)
        return
    for position, value in enumerate(args):
        if not isinstance(value, Tensor):
            continue
        if value.numel() == 0:
            raise ValueError(f"argument {position} of the model is an empty tensor of shape {tuple(value.shape)}.")
        if value.is_floating_point() and not value.isfinite().all():
            bad = ~value.isfinite()
            row = int(bad.reshape(len(value), -1).any(-1).nonzero()[0]) if value.dim() else 0
            raise ValueError(
                f"argument {position} of the model holds {value[bad][0].item()} in row {row}: data must be finite."
            )


def check_minibatch(model: Callable[..., Any], guide: Callable[..., Any], args: tuple[Any, ...], batch_size: int) -> None:
    """Raises unless minibatches of `batch_size` rows can be drawn from `args` and scaled right by `model` and `guide`."""
    tensors = [value for value in args if isinstance(value, Tensor)]
    if len(tensors) != len(args) or len({len(value) for value in tensors}) != 1:
        raise ValueError("batch_size needs data that are tensors with one row for each datum; leave batch_size=None.")
    rows = len(tensors[0])
    if not 0 < batch_size <= rows:
        raise ValueError(f"batch_size must be between 1 and the {rows} rows of the data, but is {batch_size}.")
    for role, program in (("model", model), ("guide", guide)):
        names = parameter_names(program)
        if not (names is None or {"index", "size"} <= names):
            raise ValueError(
                f"batch_size needs a {role} that takes index and size, so that the minibatch is scaled to the whole data; "
                f"this one takes {sorted(names)}. Add them (see models.LocalModel), or leave batch_size=None."
            )


def check_pair(model: Callable[..., Any], guide: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Runs the pair once and raises unless the guide draws exactly the model's latents. Makes the parameters of both."""
    own = unscoped(guide)
    if isinstance(own, Guide) and own.model is not unscoped(model):
        raise ValueError(
            f"this {type(own).__name__} guide was built for another model ({_name(own.model)}); build one for this "
            f"{_name(unscoped(model))}."
        )
    with torch.no_grad():
        guide_trace = prune_subsample_sites(poutine.trace(guide).get_trace(*args, **kwargs))
        replayed = poutine.replay(model, trace=guide_trace)
        model_trace = prune_subsample_sites(poutine.trace(replayed).get_trace(*args, **kwargs))
    latents: set[str] = set()
    summed_out: set[str] = set()
    for name, site in model_trace.nodes.items():
        if site["type"] == "sample" and not site["is_observed"]:
            (summed_out if site["infer"].get("enumerate") else latents).add(name)
    drawn = {
        name
        for name, site in guide_trace.nodes.items()
        if site["type"] == "sample" and not site["is_observed"] and not site["infer"].get("is_auxiliary")
    }
    if missing := sorted(latents - drawn):
        raise ValueError(
            f"the guide does not draw the latent {missing[0]!r} of the model: it draws {sorted(drawn)}, the model's latents "
            f"are {sorted(latents)}. Give both the same site names."
        )
    if surplus := sorted(drawn - latents - summed_out):
        raise ValueError(
            f"the guide draws {surplus[0]!r}, which is no latent of the model: its latents are {sorted(latents)}. Rename the "
            "site, or mark it with infer={'is_auxiliary': True}."
        )


def parameter_names(program: Callable[..., Any]) -> set[str] | None:
    """Names of the arguments of a program; None if it takes any."""
    program = unscoped(program)
    parameters = inspect.signature(program.forward if isinstance(program, nn.Module) else program).parameters
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return None
    return set(parameters)


def _name(program: Callable[..., Any]) -> str:
    return getattr(program, "__name__", type(program).__name__)
