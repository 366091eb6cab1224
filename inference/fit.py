"""Stochastic variational inference for any Pyro model and guide."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import isfinite
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.infer import ELBO
from pyro.params.param_store import StateDict
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler
from tqdm import tqdm

from .batches import Batch, batches
from .checks import arguments, check_data, check_minibatch, check_pair, check_positive
from .isolation import isolated, scoped
from .objectives import Objective, TraceELBO
from .row_optimiser import RowOptimiser

__all__ = ["Fit", "NonFiniteLossError", "cosine", "fit"]


@dataclass(frozen=True)
class Fit:
    """A finished fit."""

    model: Callable[..., Any]
    """The model; a plain function is bound to its fitted `pyro.param` values."""
    guide: Callable[..., Any]
    """The fitted guide, likewise."""
    nelbo: Tensor
    """The loss at each step: an estimate of −ELBO of the whole data, in nats; lower is better. Shape (steps,)."""
    steps: int
    seconds: float
    seed: int
    params: StateDict = field(repr=False)
    """The param store's state at the end."""


class NonFiniteLossError(FloatingPointError):
    """The loss or its gradient became NaN or infinite.

    Attributes:
        step: the step at which it did, from 0. Its update was not made.
        site: the first site whose log probability was not finite, or None if none was.
    """

    def __init__(self, step: int, site: str | None, detail: str) -> None:
        self.step = step
        self.site = site
        super().__init__(
            f"the fit stopped at step {step}: {detail}. The guide is as it was before this step; lower lr, or look at that "
            "site's scale."
        )


def cosine(optimiser: Optimizer, steps: int) -> LRScheduler:
    """A learning rate that falls to zero along half a cosine, so that the last iterate is not noise."""
    return CosineAnnealingLR(optimiser, steps)


def fit(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    x: Tensor | tuple[Any, ...],
    *,
    steps: int,
    lr: float = 0.01,
    objective: Objective | ELBO = TraceELBO(),  # noqa: B008 - frozen
    optimiser: Callable[..., Optimizer] = torch.optim.Adam,
    schedule: Callable[[Optimizer, int], LRScheduler] | None = cosine,
    batch_size: int | None = None,
    seed: int = 0,
    progress: bool = False,
) -> Fit:
    """Maximises the ELBO over the parameters of `guide`, and over those of `model` if it has any.

    Model and guide are used as they are: models and guides of this suite, any `PyroModule`, Pyro's autoguides, or plain
    functions with `pyro.param` and `pyro.module`. Modules are trained in place. Nothing global is changed: the fit has its
    own random state and param store, and after it, an error or Ctrl-C all is as before.

    Args:
        model: a Pyro model, called as model(x), or model(*x) if `x` is a tuple.
        guide: a Pyro guide with the same arguments.
        x: the data.
        steps: number of optimiser steps.
        lr: learning rate at the first step.
        objective: one of `inference.objectives`, or an ELBO object of Pyro's; by default the estimator of Pyro's
            `Trace_ELBO` with one draw.
        optimiser: makes a torch optimiser from parameters and `lr`.
        schedule: makes a learning-rate schedule from the optimiser and `steps`; None for a constant rate.
        batch_size: rows in a minibatch, drawn by epoch shuffling; all the data at once by default. Model and guide must
            take `index` and `size`.
        seed: fixes initial values that the guide draws on its first call, the batches and the noise.
        progress: whether to show a progress bar.

    Raises:
        TypeError, ValueError: for bad input, before any work starts.
        NonFiniteLossError: at the first step whose loss or gradient is not finite; names the site.

    Reference: Kucukelbir, Tran, Ranganath, Gelman & Blei, "Automatic differentiation variational inference" (2017).
    """
    args = arguments(x)
    if isinstance(steps, bool) or not isinstance(steps, int):
        raise TypeError(f"steps must be an integer, but is {steps!r}.")
    check_positive(steps=steps, lr=lr)
    check_data(model, args)
    if batch_size is not None:
        check_minibatch(model, guide, args, batch_size)
    losses = torch.empty(steps, dtype=torch.float64)
    begin = time.perf_counter()
    with isolated(seed) as store:
        stream = batches(args, batch_size)
        rows = RowOptimiser()
        parameters = _parameters(model, guide, next(stream), rows)
        if not parameters:
            raise ValueError("neither the model nor the guide has a parameter to learn, so there is nothing to fit.")
        descent = optimiser(parameters, lr=lr)
        decay = None if schedule is None else schedule(descent, steps)
        with _own_nan_check(), tqdm(total=steps, disable=not progress, unit="step") as bar:
            for step in range(steps):
                batch = next(stream)
                rng = torch.get_rng_state()
                with rows, poutine.trace(param_only=True) as used:
                    loss = _loss_and_grads(objective, model, guide, batch)
                _adopt(used.trace, parameters, rows, descent)
                if not (isfinite(loss) and _finite_gradients(parameters)):
                    raise _explain(model, guide, batch, rows, step=step, loss=loss, rng=rng)
                losses[step] = loss
                rows.load(descent, batch.epoch)
                descent.step()
                rows.store(descent)
                descent.zero_grad()
                if decay is not None:
                    decay.step()
                bar.update()
    return Fit(
        model=scoped(model, store),
        guide=scoped(guide, store),
        nelbo=losses,
        steps=steps,
        seconds=time.perf_counter() - begin,
        seed=seed,
        params=store,
    )


def _parameters(
    model: Callable[..., Any], guide: Callable[..., Any], batch: Batch, rows: RowOptimiser
) -> list[torch.nn.Parameter | Tensor]:
    """The tensors to optimise: each once, the rows of a local table in place of the table. Checks the pair on the way."""
    with rows, poutine.trace(param_only=True) as used:
        check_pair(model, guide, batch.args, batch.kwargs)
    parameters: list[Tensor] = list(rows.leaves.values())
    _adopt(used.trace, parameters, rows, None)
    for parameter in parameters:
        parameter.grad = None
    return parameters


def _loss_and_grads(objective: Objective | ELBO, model: Callable[..., Any], guide: Callable[..., Any], batch: Batch) -> float:
    """The loss of one batch; adds its gradient to the parameters'."""
    if hasattr(objective, "loss_and_grads"):
        return float(objective.loss_and_grads(model, guide, *batch.args, **batch.kwargs))
    value, surrogate = objective(model, guide, batch.args, batch.kwargs)
    if surrogate.requires_grad:
        surrogate.backward()
    return float(value)


@contextmanager
def _own_nan_check() -> Iterator[None]:
    """Leaves NaN to `fit`, which stops at it and names the site: Pyro would raise without the step, or only warn."""
    with pyro.validation_enabled(False), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Encountered NaN", UserWarning)
        yield


def _adopt(trace: poutine.Trace, parameters: list[Tensor], rows: RowOptimiser, descent: Optimizer | None) -> None:
    """Adds the parameters that this trace met for the first time."""
    known = {id(parameter) for parameter in (*parameters, *rows.leaves)}
    for site in trace.nodes.values():
        parameter = site["value"].unconstrained() if site["type"] == "param" else None
        if parameter is None or id(parameter) in known or not parameter.requires_grad:
            continue
        known.add(id(parameter))
        parameters.append(parameter)
        if descent is not None:
            descent.param_groups[0]["params"].append(parameter)


def _finite_gradients(parameters: list[Tensor]) -> bool:
    gradients = [p.grad for p in parameters if p.grad is not None]
    return bool(torch.nn.utils.get_total_norm(gradients).isfinite())


def _explain(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    batch: Batch,
    rows: RowOptimiser,
    *,
    step: int,
    loss: float,
    rng: Tensor,
) -> NonFiniteLossError:
    """Runs the step once more with its own noise, to find the first site whose log probability is not finite."""
    torch.set_rng_state(rng)
    with rows, torch.no_grad():
        guide_trace = poutine.trace(guide).get_trace(*batch.args, **batch.kwargs)
        model_trace = poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace(*batch.args, **batch.kwargs)
    for role, trace in (("guide", guide_trace), ("model", model_trace)):
        for name, site in trace.nodes.items():
            if site["type"] != "sample":
                continue
            log_prob = site["fn"].log_prob(site["value"])
            if isinstance(log_prob, Tensor) and not log_prob.isfinite().all():
                bad = log_prob[~log_prob.isfinite()][0].item()
                return NonFiniteLossError(step, name, f"the log probability of site {name!r} in the {role} is {bad}")
    what = f"the loss is {loss}" if not isfinite(loss) else "the gradient of the loss is not finite"
    return NonFiniteLossError(step, None, f"{what}, though every site's log probability is finite")
