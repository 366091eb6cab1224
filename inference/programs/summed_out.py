"""Latents that the model marks for enumeration and the guide does not draw, summed out of a trace."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from pyro import poutine
from pyro.infer.traceenum_elbo import _compute_model_factors
from pyro.ops import packed
from pyro.ops.contract import contract_tensor_tree
from pyro.ops.rings import LogRing
from pyro.poutine.indep_messenger import CondIndepStackFrame
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor

from . import log_einsum

__all__ = ["Factor", "left_to_sum", "summed_out"]


class Factor(NamedTuple):
    """An independent part of the sum over the latents that are left."""

    log_density: Tensor
    """Shape (*plates)."""
    frames: tuple[CondIndepStackFrame, ...]
    """Its plates."""


def left_to_sum(model_trace: poutine.Trace, guide_trace: poutine.Trace) -> bool:
    """Whether the model marks a latent for enumeration that the guide does not draw."""
    return any(
        site["type"] == "sample"
        and not site["is_observed"]
        and name not in guide_trace
        and site["infer"].get("enumerate") is not None
        for name, site in model_trace.nodes.items()
    )


def summed_out(
    model: Callable[..., Any], guide_trace: poutine.Trace, args: tuple[Any, ...], *, nesting: int
) -> tuple[poutine.Trace, set[str], list[Factor]]:
    """Runs the model at the draws of `guide_trace` for all values of the latents that are left, and sums over them.

    Args:
        model: a Pyro model.
        guide_trace: with its log densities.
        args: of one call.
        nesting: number of nested plates of the pair.

    Returns:
        The model's trace; the names of its sites that are part of the sum; and the factors of the sum.
    """
    guide_trace = _fresh(guide_trace)
    # As in Pyro's `TraceEnum_ELBO`, enumeration sees a site before its value is replaced by the guide's draw.
    enumerated = poutine.enum(_AllAtOnce()(model), first_available_dim=-1 - nesting)
    trace = poutine.trace(poutine.replay(enumerated, trace=guide_trace)).get_trace(*args)
    trace = prune_subsample_sites(trace)
    trace.compute_log_prob()
    trace.pack_tensors()
    guide_trace.pack_tensors(trace.plate_to_symbol)
    _, terms, _, dims, scale = _compute_model_factors(trace, guide_trace)
    sites = [site for site in trace.nodes.values() if site["type"] == "sample"]
    frames = {trace.plate_to_symbol[f.name]: f for site in sites for f in site["cond_indep_stack"] if f.vectorized}
    factors = [
        Factor(
            packed.unpack(packed.scale_and_mask(term, scale=scale), trace.symbol_to_dim),
            tuple(frames[symbol] for symbol in sorted(plates)),
        )
        for plates, parts in contract_tensor_tree(terms, dims, ring=_MappedRing()).items()
        for term in parts
    ]
    within = {site["name"] for site in sites if not dims.isdisjoint(site["packed"]["log_prob"]._pyro_dims)}
    return trace, within, factors


def _fresh(trace: poutine.Trace) -> poutine.Trace:
    """A copy without what an earlier enumeration has noted at its sites."""
    copy = poutine.Trace()
    for name, site in trace.nodes.items():
        infer = {key: value for key, value in site.get("infer", {}).items() if not key.startswith(("_dim_to", "_enumerate"))}
        copy.add_node(name, **{key: value for key, value in site.items() if key != "packed"} | {"infer": infer})
    return copy


class _MappedRing(LogRing):
    """Pyro's own sums of products, without its gradient of the logarithm, which vmap cannot map."""

    _backend = log_einsum.__name__


class _AllAtOnce(Messenger):
    """Enumerates in parallel what is marked to be enumerated in turn: the sum is the same."""

    def _pyro_sample(self, msg: Any) -> None:
        if not msg["done"] and msg["infer"].get("enumerate") == "sequential":
            msg["infer"]["enumerate"] = "parallel"
