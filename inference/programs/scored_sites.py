"""The sample sites of guide and model at draws of the guide, each with its role and its log density."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pyro
import torch
from pyro import poutine
from pyro.distributions import Delta, Unit
from pyro.poutine.indep_messenger import CondIndepStackFrame
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor

from .masked_data import fill_hidden_data
from .summed_out import left_to_sum, summed_out
from .traced_pairs import Pair, runs_the_model, trace_pair

__all__ = ["ScoredSite", "guide_sites", "hold", "pair_sites", "scored", "scored_model", "scored_under_plate"]


class ScoredSite(NamedTuple):
    """One sample site. Densities and values of K draws have the draws in their first dimension."""

    name: str
    role: str
    """q, prior or likelihood."""
    frames: tuple[CondIndepStackFrame, ...]
    """The plates that contain it."""
    log_prob: Tensor
    """With scale and mask, in nats. Shape (*plates), or (K, *plates)."""
    value: Tensor
    """Shape (*plates, *event), or (K, *plates, *event)."""
    point_mass: bool
    """Whether the site's distribution is a Delta."""
    pointwise: bool
    """Whether its log density is one of data: false for `pyro.factor`."""

    @property
    def signature(self) -> tuple[Any, ...]:
        """The part of a site that must not differ between two draws."""
        return self.name, self.role, self.frames, self.point_mass, self.pointwise


def scored(model: Callable[..., Any], guide: Callable[..., Any], args: tuple[Any, ...]) -> list[ScoredSite]:
    """Runs guide and model once and scores all their sample sites. What the model enumerates alone is summed out."""
    if runs_the_model(guide):
        return pair_sites(trace_pair(model, guide, args, {}))
    guide_trace = poutine.trace(guide).get_trace(*args)
    # A flow has the inverse of its draw only until it makes the next one.
    return guide_sites(guide_trace) + scored_model(model, guide_trace, args)


def scored_model(model: Callable[..., Any], drawn: poutine.Trace, args: tuple[Any, ...]) -> list[ScoredSite]:
    """The sample sites of the model at the draws of the guide.

    A latent that the model marks for enumeration and the guide does not draw is summed out with all sites that depend on it:
    the sum stands for them, as a likelihood.
    """
    trace = poutine.trace(poutine.replay(model, trace=drawn)).get_trace(*args)
    if not left_to_sum(trace, drawn):
        return _sites(trace, is_guide=False)
    drawn = prune_subsample_sites(drawn)
    drawn.compute_log_prob()
    stacks = [s["cond_indep_stack"] for t in (trace, drawn) for s in t.nodes.values() if s["type"] == "sample"]
    nesting = max((-f.dim for stack in stacks for f in stack if f.dim is not None), default=0)
    trace, within, factors = summed_out(model, drawn, args, nesting=nesting)
    sites = _sites(trace, is_guide=False)
    data = "+".join(site.name for site in sites if site.name in within and site.role == "likelihood")
    sums = [
        ScoredSite(data, "likelihood", f.frames, f.log_density, f.log_density, point_mass=False, pointwise=len(factors) == 1)
        for f in factors
    ]
    latents = [s for s in sites if s.name in within and s.name in drawn]
    # The density of a latent that depends on a summed one is part of the sum, but its draws are draws of the prior's sites.
    return [s for s in sites if s.name not in within] + [s._replace(log_prob=torch.zeros(())) for s in latents] + sums


def pair_sites(pair: Pair) -> list[ScoredSite]:
    """The sample sites of two traces."""
    return guide_sites(pair.guide) + _sites(pair.model, is_guide=False)


def guide_sites(trace: poutine.Trace) -> list[ScoredSite]:
    """The sample sites of a trace of the guide."""
    return _sites(trace, is_guide=True)


def hold(sites: list[ScoredSite], trace: poutine.Trace, draw: int, *, point_masses: bool = False) -> poutine.Trace:
    """The unobserved sites of `trace` with the values of one of K draws, to replay.

    Args:
        point_masses: whether to hold them too; else the program computes them anew, as it does from the draws it passes on.
    """
    values = {s.name: s.value[draw] for s in sites if s.role != "likelihood" and (point_masses or not s.point_mass)}
    held = poutine.Trace()
    for name, site in trace.nodes.items():
        if name in values and site["type"] == "sample" and not site["is_observed"]:
            held.add_node(name, **{**site, "value": values[name]})
    return held


def _sites(trace: poutine.Trace, *, is_guide: bool) -> list[ScoredSite]:
    trace = prune_subsample_sites(trace)
    if not is_guide:
        fill_hidden_data(trace)
    trace.compute_log_prob()
    sites = []
    for name, site in trace.nodes.items():
        if site["type"] == "sample" and not site["infer"].get("_deterministic"):
            role = "q" if is_guide else "likelihood" if site["is_observed"] else "prior"
            fn = site["fn"]
            mass, factor = isinstance(getattr(fn, "base_dist", fn), Delta), isinstance(fn, Unit)
            stack = site["cond_indep_stack"]
            sites.append(ScoredSite(name, role, stack, site["log_prob"], site["value"], mass, not factor))
    return sites


def scored_under_plate(
    model: Callable[..., Any], guide: Callable[..., Any], args: tuple[Any, ...], *, draws: int, nesting: int
) -> list[ScoredSite]:
    """The sites of `draws` draws, by one call inside an outer plate of draws. Each is inside that plate alone, or has its own.

    Args:
        nesting: number of nested plates of the pair.
    """
    with pyro.plate("_draws", draws, dim=-1 - nesting):
        guide_trace = poutine.trace(guide).get_trace(*args)
        sites = guide_sites(guide_trace)
        model_trace = poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace(*args)
    sites += _sites(model_trace, is_guide=False)
    traces = {"q": guide_trace, "prior": model_trace, "likelihood": model_trace}
    found = []
    for site in sites:
        batch = site.value.dim() - len(traces[site.role].nodes[site.name]["fn"].event_shape)
        inside = {frame.dim for frame in site.frames}
        outside = [d for d in range(1, nesting + 1) if d - nesting - 1 not in inside]
        value = _led(site.value, nesting + 1 - batch, draws)
        log_prob = _led(site.log_prob, nesting + 1 - site.log_prob.dim(), draws)
        found.append(site._replace(log_prob=log_prob, value=value.squeeze(outside) if outside else value))
    return found


def _led(value: Tensor, missing: int, draws: int) -> Tensor:
    """`value` with the draws in dimension 0, before all plates of the pair."""
    value = value.reshape((1,) * missing + tuple(value.shape))
    return value.expand(draws, *value.shape[1:])
