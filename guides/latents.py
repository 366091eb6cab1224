"""The latents of a model, packed into one unconstrained vector."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from math import prod
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.distributions import constraints
from pyro.distributions.torch_distribution import TorchDistribution
from pyro.distributions.util import sum_rightmost
from pyro.poutine.indep_messenger import CondIndepStackFrame
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import prune_subsample_sites, site_is_subsample
from torch import Tensor
from torch.distributions import biject_to

from .supports import support_of

__all__ = ["Latent", "Latents", "check_supports"]


@dataclass(frozen=True)
class Latent:
    """One latent site of a model: its shapes, support and plates."""

    name: str
    support: constraints.Constraint
    batch_shape: torch.Size
    event_shape: torch.Size
    unconstrained_shape: torch.Size
    frames: tuple[CondIndepStackFrame, ...]
    is_vector: bool
    """Whether the site needs neither a bijection nor a reshape: one vector of reals, or of zeros and ones."""


class Latents:
    """The latent sites of a model, found by tracing it once and packed into one unconstrained vector.

    Args:
        model: any Pyro program.
        args, kwargs: arguments for one call of it.
        plate: name of the data plate, to pack the latents inside it into one vector per datum; None packs all latents.
        discrete: whether the latents must be binary, for a discrete family, rather than real.
        shared: pack the latents outside the plate instead, into one vector for all data. There may be none.

    Raises:
        ValueError: if there is no latent site, a latent is discrete or continuous against `discrete`, the support of a latent
            depends on another one, or a latent to be packed for each datum lies outside the plate or inside another one too.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        args: Any,
        kwargs: Any,
        *,
        plate: str | None,
        discrete: bool = False,
        shared: bool = False,
    ) -> None:
        with torch.random.fork_rng(), torch.no_grad(), pyro.get_param_store().scope(), poutine.block(), _Feasible(args):
            trace = poutine.trace(model).get_trace(*args, **kwargs)
            _check_supports(trace, model, args, kwargs)
        trace = prune_subsample_sites(trace)
        sites = [site for site in trace.nodes.values() if site["type"] == "sample" and not site["is_observed"]]
        if not sites:
            raise ValueError("the model has no latent sites: give a model with a pyro.sample statement that is not observed.")
        if plate is not None:
            local = [site for site in sites if any(frame.name == plate for frame in site["cond_indep_stack"])]
            outside = [site for site in sites if all(frame.name != plate for frame in site["cond_indep_stack"])]
            # If no latent is in the plate, those outside are kept, and the first of them is named in the error.
            sites = outside if shared else local or sites
        plate = None if shared else plate
        self.plate = plate
        self.discrete = discrete
        self.sites = [_latent(site, plate, discrete=discrete) for site in sites]
        if discrete and not (len(sites) == 1 and self.sites[0].is_vector):
            raise ValueError("a discrete family needs a model whose only latent is a vector of zeros and ones.")
        self.dim = sum(self._width(site) for site in self.sites)
        self.dtype = sites[0]["value"].dtype if sites else None
        self.device = sites[0]["value"].device if sites else None
        self.plate_sizes: dict[str, int] = {f.name: f.full_size or f.size for site in self.sites for f in site.frames}
        # Plate dimensions of the whole model, and those of the packed sites alone.
        every = [frame for site in trace.nodes.values() if site["type"] == "sample" for frame in site["cond_indep_stack"]]
        self.depth = max((-f.dim for f in every if f.vectorized and f.dim is not None), default=0)
        self.nesting = max((-f.dim for site in self.sites for f in site.frames if f.dim is not None), default=0)
        observed = [s for s in trace.nodes.values() if s["type"] == "sample" and s["is_observed"]]
        self.observed_plates = frozenset(frame.name for site in observed for frame in site["cond_indep_stack"])
        """Names of the plates that hold data."""

    def sample(
        self, q: TorchDistribution, plate: pyro.plate | None, *, name: str = "_latent"
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Draws the packed vector from `q` and samples the model's sites from it, inside the data `plate` if there is one.

        Args:
            q: distribution of the packed vector.
            plate: the data plate, or None.
            name: site of the packed vector, unless the model's only site takes it unchanged.

        Returns:
            The values of the sites, and the packed vector.
        """
        with ExitStack() as stack:
            if plate is not None:
                stack.enter_context(plate)
            if len(self.sites) == 1 and self.sites[0].is_vector and (plate is not None or not self.sites[0].frames):
                name = self.sites[0].name
                value = pyro.sample(name, q)
                return {name: value}, value
            packed = pyro.sample(name, q, infer={"is_auxiliary": True})
            return self._unpack(packed), packed

    def constrain(self, packed: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """The sites' values at `packed`, shape (dim,), and log |det ∂ values / ∂ packed|, shape (). Samples no Pyro site."""
        values, densities = self._transformed(packed)
        return values, torch.stack([density.sum() for density in densities.values()]).sum()

    def pack(self, values: Mapping[str, Tensor]) -> Tensor:
        """The packed vectors of K draws of every latent, each of shape (K, *shape): the inverse of what `sample` returns.

        Returns:
            Shape (K, N, dim), or (K, dim) without a data plate.

        Raises:
            ValueError: if a latent is missing or has another shape.
        """
        parts = []
        kept = 1 if self.plate is None else 2
        for site in self.sites:
            value = values.get(site.name)
            shape = (*(site.batch_shape if self.plate is None else ()), *site.event_shape)
            if value is None or tuple(value.shape[kept:]) != shape:
                got = "nothing" if value is None else f"shape {tuple(value.shape)}"
                expected = (*("K", "N")[:kept], *shape)
                raise ValueError(f"draws of the latent {site.name!r} must have shape {expected}, but there is {got}.")
            if not site.is_vector:
                value = biject_to(site.support).inv(value)
            parts.append(value.reshape(*value.shape[:kept], self._width(site)))
        return torch.cat(parts, -1)

    def log_factors(self, model: Callable[..., Any], packed: Tensor, args: tuple[Any, ...]) -> tuple[Tensor, Tensor]:
        """log p(h), as a density over the packed vector (including the Jacobian of bounded latents), and log p(x | h).

        Both are differentiable in `packed` and hidden from active Pyro handlers.

        Args:
            model: the model of these latents.
            packed: K draws, shape (K, N, dim), or (K, dim) without a data plate. Without the first dimension it is one draw,
                and the model sees each latent in its own shape: vmap can then evaluate models that Pyro cannot vectorise.
            args: arguments for one call of the model, with N data.

        Returns:
            Two tensors of the shape of `packed` without its last dimension.
        """
        local = int(self.plate is not None)
        rows = packed.shape[packed.dim() - 1 - local : -1]
        many = packed.dim() - 1 - local
        lead = (*packed.shape[:many], *(1,) * (many * (self.depth - local)), *rows)
        values, densities = self._transformed(packed.reshape(*lead, self.dim))
        with poutine.block():
            trace = prune_subsample_sites(poutine.trace(poutine.condition(model, data=values)).get_trace(*args))
        trace.compute_log_prob()
        prior = likelihood = packed.new_zeros(packed.shape[:-1])
        for name, site in trace.nodes.items():
            if site["type"] != "sample":
                continue
            if not site["is_observed"]:
                raise ValueError(
                    f"the latent {name!r} is not among the packed ones {sorted(values)}: the density needs a value of each "
                    "latent."
                )
            value = site["log_prob"]
            if name in densities:
                value = value + site["scale"] * densities[name]
            value = value.reshape((1,) * (self.depth + many - value.dim()) + tuple(value.shape))
            kept = (*range(many), *(value.dim() - 1,) * local)
            if others := [d for d in range(value.dim()) if d not in kept]:
                value = value.sum(others)
            if site["is_observed"] and name not in values:
                likelihood = likelihood + value
            else:
                prior = prior + value
        return prior, likelihood

    def log_joint(self, model: Callable[..., Any], packed: Tensor, args: tuple[Any, ...]) -> Tensor:
        """log p(x, h) over the packed vector: the sum of `log_factors`. Arguments as there."""
        prior, likelihood = self.log_factors(model, packed, args)
        return prior + likelihood

    def _unpack(self, packed: Tensor) -> dict[str, Tensor]:
        values, densities = self._transformed(packed)
        plates = {
            frame: pyro.plate(frame.name, frame.full_size or frame.size, dim=frame.dim)
            for site in self.sites
            for frame in site.frames
            if frame.name != self.plate
        }
        for site in self.sites:
            with ExitStack() as stack:
                for frame in site.frames:
                    if frame in plates:
                        stack.enter_context(plates[frame])
                value, density = values[site.name], -densities[site.name]
                pyro.sample(site.name, dist.Delta(value, log_density=density, event_dim=len(site.event_shape)))
        return values

    def _transformed(self, packed: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The sites' values at `packed`, shape (*lead, dim), and the log |det| of each site's map, in its batch shape.

        Without a data plate, the last dimensions of `lead`, one for each nested plate of the sites, have size 1 and are
        replaced by the batch shape of each site.
        """
        values, densities = {}, {}
        lead: tuple[int, ...] = tuple(packed.shape[:-1])
        if self.plate is None:
            lead = lead[: max(0, len(lead) - self.nesting)]
        start = 0
        for site in self.sites:
            width = self._width(site)
            batch: tuple[int, ...] = () if self.plate is not None else tuple(site.batch_shape)
            if self.plate is None and lead:
                batch = (1,) * (self.nesting - len(batch)) + batch
            unconstrained = packed[..., start : start + width].reshape((*lead, *batch, *site.unconstrained_shape))
            start += width
            if self.discrete:
                values[site.name], densities[site.name] = unconstrained, unconstrained.new_zeros((*lead, *batch))
                continue
            transform = biject_to(site.support)
            value = transform(unconstrained)
            density = transform.log_abs_det_jacobian(unconstrained, value)
            values[site.name] = value
            densities[site.name] = sum_rightmost(density, density.dim() - (value.dim() - len(site.event_shape)))
        return values, densities

    def _width(self, site: Latent) -> int:
        shape = site.unconstrained_shape if self.plate is not None else (*site.batch_shape, *site.unconstrained_shape)
        return prod(shape)


class _Feasible(Messenger):
    """Gives latents with Pyro's `ImproperUniform` prior, which has no draws, a value in their support.

    The prior has no parameters and so no dtype; the value takes that of the data.
    """

    def __init__(self, args: Any) -> None:
        super().__init__()
        self.dtype = next((v.dtype for v in args if isinstance(v, Tensor) and v.is_floating_point()), None)

    def _pyro_sample(self, msg: Any) -> None:
        if not msg["is_observed"] and msg["value"] is None and isinstance(msg["fn"], dist.ImproperUniform):
            transform = biject_to(support_of(msg["name"], msg["fn"]))
            msg["value"] = transform(torch.zeros(transform.inverse_shape(msg["fn"].shape()), dtype=self.dtype))


def check_supports(model: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
    """Raises a ValueError if the support of a latent depends on another one: a map fixed by one draw misses part of it."""
    with torch.random.fork_rng(), torch.no_grad(), pyro.get_param_store().scope(), poutine.block(), _Feasible(args):
        _check_supports(poutine.trace(model).get_trace(*args, **kwargs), model, args, kwargs)


def _check_supports(trace: poutine.Trace, model: Callable[..., Any], args: Any, kwargs: Any) -> None:
    """Compares the bounds of all supports with those of more draws; only if a support has bounds that are tensors."""
    rows = poutine.Trace()
    for name, site in trace.nodes.items():
        if site_is_subsample(site):
            rows.add_node(name, **site)
    bounds = {name: _bounds(site["fn"].support) for name, site in trace.nodes.items() if _is_latent(site)}
    if not any(bounds.values()):
        return
    for _ in range(3):
        nodes = poutine.trace(poutine.replay(model, trace=rows)).get_trace(*args, **kwargs).nodes
        for name, before in bounds.items():
            after = _bounds(nodes[name]["fn"].support) if name in nodes else before
            if any(a.shape != b.shape or not torch.equal(a, b) for a, b in zip(before, after, strict=False)):
                raise ValueError(
                    f"the support of the latent {name!r} depends on another latent, so no fixed map leads to it: write it as "
                    "a latent with a fixed support, scaled and shifted, such as low + width * u with u in (0, 1); or pass a "
                    "plain Pyro guide that draws it inside its support."
                )


def _is_latent(site: dict[str, Any]) -> bool:
    return site["type"] == "sample" and not site["is_observed"] and not site_is_subsample(site)


def _bounds(support: Any) -> list[Tensor]:
    """The tensors in a constraint and in the constraints that it is made of."""
    found = []
    for value in vars(support).values():
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, constraints.Constraint):
            found += _bounds(value)
        elif isinstance(value, (list, tuple)):
            found += [bound for part in value if isinstance(part, constraints.Constraint) for bound in _bounds(part)]
    return found


def _latent(site: dict[str, Any], plate: str | None, *, discrete: bool) -> Latent:
    name, fn = site["name"], site["fn"]
    if fn.support.is_discrete and not discrete:
        raise ValueError(
            f"the latent {name!r} is discrete ({fn}), but this family is over real vectors: use a discrete family such as "
            "Bernoulli, or sum the latent out."
        )
    if discrete and not fn.support.is_discrete:
        raise ValueError(
            f"the latent {name!r} is continuous ({fn}), but this family is over vectors of zeros and ones: use a continuous "
            "family such as MeanField."
        )
    frames = tuple(frame for frame in site["cond_indep_stack"] if frame.vectorized)
    if plate is not None and [frame.name for frame in frames] != [plate]:
        inside = ", ".join(repr(frame.name) for frame in frames) or "no plate"
        raise ValueError(
            f"the latent {name!r} is inside {inside}, but a guide with one λ for each datum needs it inside the plate "
            f"{plate!r} alone: use a Global guide, or name the data plate by plate=...."
        )
    if plate is not None and frames[0].dim != -1:
        raise ValueError(
            f"the latent {name!r} is inside the plate {plate!r} at dim {frames[0].dim}, but a guide with one λ for each datum "
            "needs the data plate at dim -1: open it last."
        )
    event_shape = fn.event_shape
    full = support = support_of(name, fn)
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    batch_shape = site["value"].shape[: site["value"].dim() - len(event_shape)]
    unconstrained = fn.shape() if discrete else biject_to(full).inverse_shape(fn.shape())
    return Latent(
        name=name,
        support=full,
        batch_shape=batch_shape,
        event_shape=event_shape,
        unconstrained_shape=unconstrained[len(fn.batch_shape) :],
        frames=frames,
        is_vector=len(event_shape) == 1 and support in (constraints.real, constraints.boolean),
    )
