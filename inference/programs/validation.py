"""Argument validation. Every message says what is wrong, where, what was expected and what to do."""

from __future__ import annotations

import inspect
import linecache
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import inf
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.infer.util import is_validation_enabled
from pyro.poutine.util import prune_subsample_sites, site_is_subsample
from pyro.util import check_model_guide_match, check_site_shape
from torch import Tensor, nn

from guides import Defensive, Guide, Posterior, Prior
from models.arguments import count, number, shown

from .bound import origin, unwrap
from .isolation import isolated
from .masked_data import fill_hidden_data
from .separation import separated
from .support import check_support
from .traced_pairs import Pair, runs_the_model, trace_pair

__all__ = [
    "as_args",
    "check_count",
    "check_data",
    "check_draws",
    "check_minibatch",
    "check_pair",
    "check_rate",
    "naming",
    "raised_here",
]

MAX_RATE = 1e30
"""Bound on learning rates, far above any use, which single precision still holds."""
OWN_PACKAGES = frozenset({"guides", "inference", "models"})


def as_args(x: Tensor | tuple[Any, ...]) -> tuple[Any, ...]:
    """The positional arguments of one call of the model: a tuple as it is, or a single tensor."""
    return separated(x if isinstance(x, tuple) else (x,))


def check_count(*, least: int = 1, **options: Any) -> None:
    """Raises for the first option that is not an integer of at least `least`."""
    for name, value in options.items():
        count(name, value, least=least)


def check_draws(owner: object, draws: Any, *, least: int = 1) -> None:
    """Raises unless `draws`, an option of `owner`, is an integer of at least `least`."""
    count(f"{type(owner).__name__}: the number of draws", draws, least=least)


def check_rate(lr: Any) -> None:
    """Raises unless the learning rate is a positive number."""
    number("lr", lr, above=0, below=MAX_RATE)


def check_data(model: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any] | None = None) -> None:
    """Raises unless the model can have produced the data.

    Data of a plain Pyro model must not be empty, and must be finite where no mask hides them.
    """
    model = unwrap(model)
    if hasattr(model, "check_data"):
        try:
            inspect.signature(model.check_data).bind(*args)
        except TypeError:
            raise TypeError(f"x is a tuple of {len(args)}, but {_name(model)} takes one argument: its data.") from None
        model.check_data(*args)
        return
    for position, value in enumerate(args):
        if not isinstance(value, Tensor):
            continue
        if value.numel() == 0:
            raise ValueError(f"argument {position} of the model is an empty tensor of shape {tuple(value.shape)}.")
        if value.is_floating_point() and not value.isfinite().all() and not _scores(model, args, kwargs or {}):
            bad = ~value.isfinite()
            row = int(bad.reshape(len(value), -1).any(-1).nonzero()[0]) if value.dim() else 0
            raise ValueError(
                f"argument {position} of the model holds {value[bad][0].item()} in row {row}: data must be finite where no "
                "mask (pyro.poutine.mask, obs_mask) hides them."
            )


def check_minibatch(model: Callable[..., Any], guide: Callable[..., Any], args: tuple[Any, ...], batch_size: int) -> None:
    """Raises unless `args` can be split into minibatches of `batch_size` rows that `model` and `guide` scale correctly."""
    check_count(batch_size=batch_size)
    tensors = [value for value in args if isinstance(value, Tensor) and value.dim()]
    if len(tensors) != len(args) or len({len(value) for value in tensors}) != 1:
        raise ValueError("batch_size needs tensors with one row for each datum as data; leave batch_size=None.")
    rows = len(tensors[0])
    if not 0 < batch_size <= rows:
        raise ValueError(f"batch_size must be between 1 and the {rows} rows of the data, but is {batch_size}.")
    for role, program in (("model", model), ("guide", guide)):
        names = _argument_names(program)
        if not (names is None or {"index", "size"} <= names):
            raise ValueError(
                f"batch_size needs a {role} that takes index and size, so that the minibatch is scaled to the whole data; "
                f"this one takes {sorted(names)}. Add them (see models.LocalModel), or leave batch_size=None."
            )


def check_pair(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    *,
    enumerated: bool = False,
    undrawn: bool = False,
) -> tuple[set[str], set[str]]:
    """Runs the pair once, which creates its parameters. Raises unless the guide draws exactly the latents of the model.

    Args:
        model, guide, args, kwargs: the pair and the arguments of one call.
        enumerated: whether latents that the model marks for enumeration may be missing from the guide.
        undrawn: whether the model may have no latent, and the guide leave latents to the prior, which warns.

    Returns:
        Names of the parameters of the model, and of the guide.

    Raises:
        ValueError, RuntimeError: also those of Pyro, with its own message.
    """
    _check_built_for(model, guide)
    own = unwrap(guide)
    if isinstance(own, Guide):
        with naming("guide", guide, args):
            own.setup(*args, **kwargs)
    try:
        with torch.no_grad(), naming(f"guide {_name(unwrap(guide))} or the model", model, args):
            guide_trace, model_trace = trace_pair(model, guide, args, kwargs)
        _check_sites(guide_trace, model_trace, enumerated=enumerated, undrawn=undrawn)
        check_support(model, guide, args, kwargs, pair=Pair(guide_trace, model_trace))
        if is_validation_enabled():
            _check_shapes(guide_trace, model_trace)
    except (ValueError, RuntimeError) as error:
        # Pyro appends the shapes of all earlier sites, which bury the message.
        raise type(error)(str(error).split("\nTrace Shapes:")[0].strip()) from error
    names = [{n for n, s in trace.nodes.items() if s["type"] == "param"} for trace in (model_trace, guide_trace)]
    return names[0], names[1]


@contextmanager
def naming(role: str, program: Callable[..., Any], args: tuple[Any, ...]) -> Iterator[None]:
    """Adds to an error inside a program which program it was, and what it was called with. Errors of this suite stay."""
    try:
        yield
    except Exception as error:
        if raised_here(error):
            raise
        given = ", ".join(shown(value) for value in args) or "no arguments"
        said = str(error).split("\nTrace Shapes:")[0].strip()
        kind = next((k for k in (TypeError, ValueError, RuntimeError) if isinstance(error, k)), RuntimeError)
        what = f"the {role} {_name(unwrap(program))} failed when it was called with {given}"
        raise kind(f"{what}: {type(error).__name__}: {said}") from error


def raised_here(error: BaseException) -> bool:
    """Whether an error comes from a `raise` of this suite, whose messages say what to do, rather than from what it calls."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None or trace.tb_frame.f_globals.get("__name__", "").split(".")[0] not in OWN_PACKAGES:
        return False
    return linecache.getline(trace.tb_frame.f_code.co_filename, trace.tb_lineno).lstrip().startswith("raise")


def _check_built_for(model: Callable[..., Any], guide: Callable[..., Any]) -> None:
    """Raises if the guide was built for another model, which it would run in place of this one."""
    own: Any = poutine.unwrap(unwrap(guide)) if runs_the_model(guide) else unwrap(guide)
    built_for_one = runs_the_model(guide) or isinstance(own, (Defensive, Guide, Posterior, Prior))
    if built_for_one and origin(own.model) != origin(model):
        raise ValueError(
            f"this {type(own).__name__} guide was built for another model ({_name(unwrap(own.model))}); build one for this "
            f"{_name(unwrap(model))}."
        )


def _check_sites(guide_trace: poutine.Trace, model_trace: poutine.Trace, *, enumerated: bool, undrawn: bool) -> None:
    latents: set[str] = set()
    summed_out: set[str] = set()
    for name, site in prune_subsample_sites(model_trace).nodes.items():
        if site["type"] == "sample" and not site["is_observed"]:
            (summed_out if site["infer"].get("enumerate") else latents).add(name)
    drawn = {
        name
        for name, site in prune_subsample_sites(guide_trace).nodes.items()
        if site["type"] == "sample" and not site["is_observed"] and not site["infer"].get("is_auxiliary")
    }
    if seen := sorted(_scored_data(guide_trace) & _scored_data(model_trace)):
        raise ValueError(
            f"the guide scores the data at the site {seen[0]!r}, as the model does, so that log p(x | h) and log q cancel: a "
            "guide draws latents only. If it runs the model inside a list of guides, give that part alone."
        )
    if not (latents | summed_out or undrawn):
        raise ValueError("the model has no latent site, so there is no posterior to approximate.")
    missing, surplus = sorted(latents - drawn), sorted(drawn - latents - summed_out)
    if missing and undrawn and not surplus:
        warnings.warn(
            f"the guide leaves {missing} to the prior: as in Pyro's SVI, the loss holds their log p and no log q, so that it "
            "is not −ELBO; draw them in the guide for a bound.",
            UserWarning,
            stacklevel=2,
        )
    elif missing:
        raise ValueError(
            f"the guide does not draw the latent {missing[0]!r} of the model: it draws {sorted(drawn)}, the model's latents "
            f"are {sorted(latents)}. Give both the same site names."
        )
    if surplus:
        raise ValueError(
            f"the guide draws {surplus[0]!r}, which is no latent of the model: its latents are {sorted(latents)}. Rename the "
            "site, or mark it by infer={'is_auxiliary': True}."
        )
    if not enumerated and (left := sorted(summed_out - drawn)):
        raise ValueError(
            f"the latent {left[0]!r} is marked for enumeration and the guide does not draw it, but it is not summed out here: "
            "use pyro.infer.TraceEnum_ELBO, or draw it in the guide."
        )


def _scored_data(trace: poutine.Trace) -> set[str]:
    """Names of the observed sites that have a density."""
    sites = {name: site for name, site in trace.nodes.items() if site["type"] == "sample" and site["is_observed"]}
    return {name for name, site in sites.items() if not site["infer"].get("_deterministic")}


def _check_shapes(guide_trace: poutine.Trace, model_trace: poutine.Trace) -> None:
    """Runs Pyro's own checks of shapes. A fit runs them once, then switches them off."""
    with warnings.catch_warnings():
        # The sites that Pyro warns about are checked above, or are left out on purpose.
        warnings.simplefilter("ignore", UserWarning)
        check_model_guide_match(model_trace, guide_trace)
    for trace in (guide_trace, model_trace):
        for site in trace.nodes.values():
            if site["type"] == "sample" and not site_is_subsample(site):
                log_prob = site["fn"].log_prob(site["value"])
                check_site_shape({**site, "log_prob": log_prob}, max_plate_nesting=inf)


def _scores(model: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether the log density of the data, without what masks hide, is a number at a draw from the prior."""
    with isolated(0), pyro.validation_enabled(False), torch.no_grad(), poutine.block():
        try:
            trace = prune_subsample_sites(poutine.trace(model).get_trace(*args, **kwargs))
            fill_hidden_data(trace)
            trace.compute_log_prob()
        except Exception:  # the run of the pair names what a program raises
            return False
    seen = [site for site in trace.nodes.values() if site["type"] == "sample" and site["is_observed"]]
    return bool(seen) and all(bool(site["log_prob"].isfinite().all()) for site in seen)


def _argument_names(program: Callable[..., Any]) -> set[str] | None:
    """Names of the arguments of a program; None if it accepts any keyword."""
    program = unwrap(program)
    parameters = inspect.signature(program.forward if isinstance(program, nn.Module) else program).parameters
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return None
    return set(parameters)


def _name(program: Callable[..., Any]) -> str:
    return getattr(program, "__name__", type(program).__name__)
