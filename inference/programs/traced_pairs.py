"""Traces of guide and model at draws of the guide, with log densities that carry gradients: the input of the objectives."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoGuide
from pyro.poutine.guide import GuideMessenger
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor

from guides import Defensive, Guide, Posterior, Prior
from models import Model

from .bound import unwrap
from .masked_data import fill_hidden_data

__all__ = [
    "PLATE",
    "Pair",
    "Structure",
    "held_pair",
    "is_point_mass",
    "latents",
    "require_reparameterised",
    "rerun",
    "runs_the_model",
    "structure",
    "trace_pair",
    "traced_pairs",
]

Program = Callable[..., Any]
PLATE = "_draws"
"""Name of the outer plate of draws."""


class Pair(NamedTuple):
    """A trace of the guide with score parts, and of the model at the guide's draws. Both hold log probabilities."""

    guide: poutine.Trace
    model: poutine.Trace


def trace_pair(model: Program, guide: Program, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Pair:
    """Runs the guide, and the model at its draws, as Pyro's `get_importance_trace` does; log densities are left to the caller.

    Every function that runs a pair calls this one. A guide that runs the model itself is called alone: replaying the model
    against its trace would count the data as draws of the guide. The plates' draws of row numbers are left out, and what a
    mask hides of the data is filled in.

    Reference: `pyro.infer.enum.get_importance_trace`, which also validates and scores both traces.
    """
    if runs_the_model(guide):
        guide(*args, **kwargs)
        model_trace, guide_trace = poutine.unwrap(unwrap(guide)).get_traces()
        # The parameters of both were met in one run, and the guide needs those of the model.
        guide_trace.nodes.update({n: site for n, site in model_trace.nodes.items() if site["type"] == "param"})
    else:
        guide_trace = poutine.trace(guide).get_trace(*args, **kwargs)
        model_trace = poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace(*args, **kwargs)
    pair = Pair(prune_subsample_sites(guide_trace), prune_subsample_sites(model_trace))
    fill_hidden_data(pair.model)
    return pair


def runs_the_model(guide: Program) -> bool:
    """Whether the guide is one of Pyro's effect-based guides (`AutoNormalMessenger`), which run the model that they hold."""
    return isinstance(poutine.unwrap(unwrap(guide)), GuideMessenger)


def traced_pairs(
    model: Program, guide: Program, args: tuple[Any, ...], kwargs: dict[str, Any], *, draws: int = 1, hold: bool = False
) -> list[Pair]:
    """Runs guide and model for `draws` draws: returns one Pair with an outer plate of draws, or one Pair for each draw.

    Models and guides of this suite, and Pyro's autoguides, are vectorised; any other pair is run once for each draw.

    Args:
        model, guide, args, kwargs: as for an objective.
        draws: number K of draws.
        hold: whether to detach the draws, so that gradients reach the parameters through the densities alone.
    """
    vectorised = draws > 1 and _vectorises(model, guide)
    with ExitStack() as stack:
        if vectorised:
            stack.enter_context(pyro.plate(PLATE, draws, dim=-1 - structure(model, guide, args, kwargs).nesting))
        if hold:
            stack.enter_context(_Hold())
        return [_run(model, guide, args, kwargs) for _ in range(1 if vectorised else draws)]


def held_pair(pair: Pair, model: Program, guide: Program, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Pair:
    """Reruns the pair at the same draws, detached: gradients reach the parameters through the densities alone."""
    drawn = {n: site for n, site in latents(pair.guide).items() if not is_point_mass(site["fn"])}
    detached = {n: {**site, "value": site["value"].detach()} for n, site in drawn.items()}
    return rerun(detached, model, guide, args, kwargs)


def rerun(
    sites: dict[str, dict[str, Any]], model: Program, guide: Program, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Pair:
    """Runs the pair with the guide sites `sites` fixed to their values, inside the plate of draws if they were drawn in it."""
    frame = next((f for site in sites.values() for f in site["cond_indep_stack"] if f.name == PLATE), None)
    values = {name: site["value"] for name, site in sites.items()}
    with ExitStack() as stack:
        if frame is not None:
            stack.enter_context(pyro.plate(PLATE, frame.size, dim=frame.dim))
        return _run(model, _Fixed(values)(guide), args, kwargs)


def latents(trace: poutine.Trace) -> dict[str, dict[str, Any]]:
    """The unobserved sample sites by name."""
    return {n: s for n, s in trace.nodes.items() if s["type"] == "sample" and not s["is_observed"]}


def is_point_mass(fn: Any) -> bool:
    """Whether a distribution is a Delta. Guides often use one to pass on the draw of another site, with its Jacobian."""
    while isinstance(fn, (dist.Independent, dist.ExpandedDistribution, dist.MaskedDistribution)):
        fn = fn.base_dist
    return isinstance(fn, dist.Delta)


def require_reparameterised(pair: Pair, objective: Any) -> None:
    """Raises a ValueError unless every draw of the guide is a differentiable function of its parameters."""
    for name, site in latents(pair.guide).items():
        if not site["fn"].has_rsample:
            kind = "discrete" if site["fn"].support.is_discrete else "not reparameterised"
            raise ValueError(
                f"{type(objective).__name__} differentiates through the draws of the guide, but the latent {name!r} is {kind} "
                f"({type(site['fn']).__name__}): use ScoreFunction, VIMCO, ReweightedWakeSleep or TraceELBO"
                + (", or Enumerated, which sums it out." if kind == "discrete" else ".")
            )


class Structure(NamedTuple):
    """The structure of a pair that does not depend on its parameters."""

    nesting: int
    """Number of nested plates."""
    enumerable: tuple[str, ...]
    """Latents with finitely many values, which can be summed out."""


def structure(model: Program, guide: Program, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Structure:
    """The structure of a pair. Found by one run without side effects, then cached."""
    known = _STRUCTURES.setdefault(guide, WeakKeyDictionary())
    if model not in known:
        with torch.random.fork_rng(), torch.no_grad(), poutine.block():
            pair = trace_pair(model, guide, args, kwargs)
        sites = [s for trace in pair for s in trace.nodes.values() if s["type"] == "sample"]
        nesting = max((-f.dim for s in sites for f in s["cond_indep_stack"] if f.dim is not None), default=0)
        drawn = {**latents(pair.model), **latents(pair.guide)}
        known[model] = Structure(nesting, tuple(n for n, s in drawn.items() if s["fn"].has_enumerate_support))
    return known[model]


_STRUCTURES: WeakKeyDictionary[Program, WeakKeyDictionary[Program, Structure]] = WeakKeyDictionary()


class _Hold(Messenger):
    """Detaches every draw. Has to enclose the trace, because the outermost handler postprocesses a site first."""

    def _pyro_post_sample(self, msg: Any) -> None:
        if not msg["is_observed"] and isinstance(msg["value"], Tensor) and not is_point_mass(msg["fn"]):
            msg["value"] = msg["value"].detach()


class _Fixed(Messenger):
    """Fixes draws to values. `poutine.replay` would replace the rest of a site too, where a guide that runs the model stores
    the prior."""

    def __init__(self, values: dict[str, Tensor]) -> None:
        super().__init__()
        self.values = values

    def _pyro_sample(self, msg: Any) -> None:
        if not msg["is_observed"] and msg["name"] in self.values:
            msg["value"], msg["done"] = self.values[msg["name"]], True


def _run(model: Program, guide: Program, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Pair:
    pair = trace_pair(model, guide, args, kwargs)
    pair.guide.compute_score_parts()
    pair.model.compute_log_prob()
    return pair


def _vectorises(model: Program, guide: Program) -> bool:
    return isinstance(unwrap(model), Model) and isinstance(unwrap(guide), (Defensive, Guide, Prior, Posterior, AutoGuide))
