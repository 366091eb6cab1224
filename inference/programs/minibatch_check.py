"""Checks that model and guide scale a minibatch up to the whole data."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from pyro.util import get_rng_state, set_rng_state
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

from .traced_pairs import latents, trace_pair

__all__ = ["check_minibatch_scale"]

MAX_BATCHES = 4
"""Batches that are compared with the same rows in one call."""
MAX_ERROR = 0.05
"""Largest relative difference of the two log densities of a site. Rounding stays far below it, mistakes of scale far above."""
MAX_NOISY_ERROR = 0.5
"""The same for programs whose nets normalise over the batch or draw noise of their own (batch normalisation, dropout)."""

Program = Callable[..., Any]
Failure = (RuntimeError, ValueError, TypeError, LookupError, AssertionError, NotImplementedError)
"""Errors by which a program says that it cannot be called with some of its rows as all the data."""


def check_minibatch_scale(
    model: Program,
    guide: Program,
    args: tuple[Any, ...],
    batch_size: int,
    *,
    kwargs: Mapping[str, Any] | None = None,
    transform: Callable[[Tensor], Tensor] | None = None,
) -> None:
    """Raises a ValueError if minibatches do not estimate the log densities of the whole data without bias.

    At fixed draws, each site's log density of some rows is the mean over the batches that they are cut into, weighted by their
    sizes. So a handful of calls finds a model that ignores `size`, or that scales twice, and the factor. A pair that cannot be
    run with these rows is not judged. Random states, buffers of nets and parameters stay as they are.

    Args:
        model, guide: a pair whose parameters exist.
        args: the data; row i of every tensor belongs to datum i.
        batch_size: rows of a batch.
        kwargs: other keyword arguments of each call.
        transform: applied to the rows of x = args[0].
    """
    with _unchanged() as noisy:
        size = len(args[0])
        count = min(size, MAX_BATCHES * batch_size)
        rows = tuple(value[:count] for value in args)
        if transform is not None:
            rows = (transform(rows[0]), *rows[1:])
        all_rows = torch.arange(count, device=args[0].device)
        # A program made for `size` data refuses to be called with fewer, but takes them as a batch.
        for total, whole in ((count, {}), (size, {"index": all_rows, "size": size})):
            try:
                pair = _AtFixedDraws(model, guide, dict(kwargs or {}), rows, whole)
                expected, again = pair.densities(rows, whole), pair.densities(rows, whole)
                found = pair.mean(rows, all_rows.split(batch_size), total)
            except Failure:
                continue
            random = any(expected[key].total != again[key].total for key in expected if key in again)
            _refuse(expected, found, MAX_NOISY_ERROR if random or noisy else MAX_ERROR, batch_size, count)
            return


class _Density(NamedTuple):
    """A site's log density, in nats: the sum over its entries, and the sum of their magnitudes."""

    total: float
    size: float


_Densities = dict[tuple[str, str], _Density]
"""By role, "model" or "guide", and site."""


class _AtFixedDraws:
    """A pair at the draws of one call with all `rows`."""

    def __init__(self, model: Program, guide: Program, known: dict[str, Any], rows: Any, kwargs: dict[str, Any]) -> None:
        self.model, self.guide, self.known = model, guide, known
        first = trace_pair(model, guide, rows, {**known, **kwargs})
        self.values = {name: site["value"] for trace in first for name, site in latents(trace).items()}

    def densities(self, rows: tuple[Any, ...], kwargs: dict[str, Any]) -> _Densities:
        """The log density of each site in a call with these rows."""
        with _Rows(self.values, kwargs.get("index")):
            pair = trace_pair(self.model, self.guide, rows, {**self.known, **kwargs})
        found: _Densities = {}
        for role, trace in (("guide", pair.guide), ("model", pair.model)):
            trace.compute_log_prob()
            for name, site in trace.nodes.items():
                if site["type"] == "sample":
                    found[role, name] = _Density(float(site["log_prob"].sum()), float(site["log_prob"].abs().sum()))
        return found

    def mean(self, rows: tuple[Any, ...], batches: Sequence[Tensor], size: int) -> _Densities:
        """The mean of each site's log density over batches of the rows, weighted by their sizes."""
        mean: _Densities = {}
        for index in batches:
            share = len(index) / len(rows[0])
            found = self.densities(tuple(value[index] for value in rows), {"index": index, "size": size})
            for key, density in found.items():
                known = mean.get(key, _Density(0.0, 0.0))
                mean[key] = _Density(known.total + share * density.total, known.size + share * density.size)
        return mean


def _refuse(expected: _Densities, found: _Densities, tolerance: float, batch_size: int, count: int) -> None:
    """Raises for the first site whose mean over batches is not its log density of all these rows."""
    for key, whole in expected.items():
        mean = found.get(key)
        if mean is None or not abs(mean.total - whole.total) > tolerance * max(whole.size, mean.size):
            continue
        role, name = key
        factor = mean.total / whole.total
        raise ValueError(
            f"batch_size: the {role} does not scale minibatches to the whole data. At fixed draws, the mean log density of "
            f"the site {name!r} over batches of {min(batch_size, count)} of {count} rows is {factor:.3g} times that of these "
            f"rows in one call. {_diagnosis(factor, batch_size / count)}"
        )


def _diagnosis(factor: float, share: float) -> str:
    advice = "Open the plate of the data by pyro.plate(name, size, subsample=index), which scales, and scale nothing else."
    if abs(factor / share - 1.0) < MAX_ERROR:
        return f"It seems to ignore size. {advice}"
    if abs(factor * share - 1.0) < MAX_ERROR:
        return f"It seems to scale twice, or to scale a site that all data share. {advice}"
    return advice


class _Rows(Messenger):
    """Sets each draw to its value; inside a plate over fewer rows, to the rows at `index`."""

    def __init__(self, values: dict[str, Tensor], index: Tensor | None) -> None:
        super().__init__()
        self.values = values
        self.index = index

    def _pyro_sample(self, msg: Any) -> None:
        if msg["done"] or msg["is_observed"] or msg["name"] not in self.values:
            return
        value = self.values[msg["name"]]
        events = len(msg["fn"].event_shape)
        for frame in msg["cond_indep_stack"]:
            dim = frame.dim - events if frame.vectorized else 0
            if dim < 0 and -dim <= value.dim() and value.shape[dim] not in (1, frame.size) and self.index is not None:
                value = value.index_select(dim, self.index)
        msg["value"], msg["done"] = value, True


@contextmanager
def _unchanged() -> Iterator[list[nn.Module]]:
    """Restores random states and the buffers of all nets that are called. Yields the nets that normalise or drop out."""
    buffers: dict[Tensor, Tensor] = {}
    noisy: list[nn.Module] = []

    def remember(net: nn.Module, _: Any) -> None:
        for buffer in net.buffers(recurse=False):
            buffers.setdefault(buffer, buffer.clone())
        if net.training and isinstance(net, nn.modules.batchnorm._NormBase | nn.modules.dropout._DropoutNd):
            noisy.append(net)

    before = get_rng_state()
    handle = register_module_forward_pre_hook(remember)
    try:
        with torch.no_grad(), poutine.block():
            yield noisy
    finally:
        handle.remove()
        set_rng_state(before)
        for buffer, value in buffers.items():
            with torch.no_grad():
                buffer.copy_(value)
