"""Pyro programs with parameters of their own: what a fit returns."""

from __future__ import annotations

import gc
import itertools
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from pyro.infer.autoguide import AutoGuide
from pyro.nn import PyroModule
from pyro.params.param_store import StateDict
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from .copying import copied
from .isolation import param_store

__all__ = ["BoundProgram", "origin", "owned_pair", "unwrap", "working_pair"]


class Held(NamedTuple):
    """A tensor that a net of the program's surroundings holds, and the one that the program holds in its place."""

    holder: dict[str, Any]
    """The parameters or buffers of the net."""
    name: str
    own: Tensor


class BoundProgram:
    """A Pyro program with its own parameters. A fit returns one for a plain function.

    In a call, the param store holds `params`, and each net that the function uses through `pyro.module` has the values it had
    at the end of the fit, whatever has trained it since.

    Args:
        program: the model or guide.
        params: the state of the param store with its values.
        held: parameters and buffers of nets outside the program.
    """

    def __init__(self, program: Callable[..., Any], params: StateDict, held: tuple[Held, ...] = ()) -> None:
        self.program = program
        self.params = params
        self.held = held

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with self._own_nets(), param_store(self.params):
            return self.program(*args, **kwargs)

    @contextmanager
    def _own_nets(self) -> Iterator[None]:
        others = [(held.holder, held.name, held.holder.get(held.name)) for held in self.held]
        try:
            for holder, name, own in self.held:
                holder[name] = own
            yield
        finally:
            for holder, name, other in others:
                holder[name] = other


_ORIGINS: WeakKeyDictionary[nn.Module, Any] = WeakKeyDictionary()
"""The module of the user's from which each module in a `Fit` was copied."""


_COPIES = itertools.count(1)


def unwrap(program: Callable[..., Any]) -> Callable[..., Any]:
    """The program inside a `BoundProgram`; any other program as it is."""
    return program.program if isinstance(program, BoundProgram) else program


def origin(program: Any) -> Any:
    """The user's program, for one of a `Fit` too."""
    program = unwrap(program)
    return _ORIGINS.get(program, program) if isinstance(program, nn.Module) else program


def owned_pair(
    model: Callable[..., Any], guide: Callable[..., Any], params: StateDict, names: tuple[set[str], set[str]], args: Any
) -> tuple[Callable[..., Any], Callable[..., Any], StateDict]:
    """Copies of a fitted pair and of the state of the param store, which no later training of the pair changes.

    A module that learns is copied, with a guide that refers to it; a plain function is bound to copies of its parameters. What
    has nothing to learn is returned as it is.

    Args:
        model, guide: the pair at the end of the fit.
        params: the state of the param store at the end of the fit.
        names: of the parameters of the model, and of the guide.
        args: the data, which are not copied.
    """
    for program in (model, guide):
        if isinstance(program, BoundProgram):
            params["params"].update(program.params["params"])
            params["constraints"].update(program.params["constraints"])
    memo: dict[int, Any] = {id(value): value for value in tree_leaves(args)}
    memo |= {id(value): _copied(value) for value in params["params"].values()}
    own: StateDict = {
        "params": {name: memo[id(value)] for name, value in params["params"].items()},
        "constraints": dict(params["constraints"]),
    }
    modules = _copied_modules(unwrap(model), unwrap(guide), memo)
    bound = []
    for program, new, used in zip((model, guide), modules, names, strict=True):
        learned = [params["params"][name] for name in used if name in params["params"]]
        bound.append(_bound(program, new, learned, own, memo))
    return bound[0], bound[1], own


def working_pair(model: Callable[..., Any], guide: Callable[..., Any]) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """The pair that a new fit trains: what belongs to an earlier `Fit` is copied, all else is trained in place."""
    memo: dict[int, Any] = {}
    pair = (model, guide)
    for program in pair:
        if isinstance(program, BoundProgram):
            memo |= {id(value): _copied(value) for value in program.params["params"].values()}
            memo |= {id(held.own): _copied(held.own) for held in program.held if id(held.own) not in memo}
    bases = [unwrap(program) for program in pair]
    if any(isinstance(base, nn.Module) and base in _ORIGINS for base in bases):
        bases = list(_copied_modules(bases[0], bases[1], memo, only_owned=True))
    states: dict[int, StateDict] = {}
    new: list[Callable[..., Any]] = []
    for program, base in zip(pair, bases, strict=True):
        if not isinstance(program, BoundProgram):
            new.append(base)
            continue
        state = states.setdefault(id(program.params), _state(program.params, memo))
        new.append(BoundProgram(base, state, tuple(h._replace(own=memo[id(h.own)]) for h in program.held)))
    return new[0], new[1]


def _copied(value: Tensor) -> Tensor:
    copied = value.detach().clone()
    return (
        nn.Parameter(copied, value.requires_grad)
        if isinstance(value, nn.Parameter)
        else copied.requires_grad_(value.requires_grad)
    )


def _state(params: StateDict, memo: dict[int, Any]) -> StateDict:
    values = {name: memo[id(value)] for name, value in params["params"].items()}
    return {"params": values, "constraints": dict(params["constraints"])}


def _copied_modules(model: Any, guide: Any, memo: dict[int, Any], *, only_owned: bool = False) -> tuple[Any, Any]:
    """Model and guide, copied if they are modules that learn; what cannot be copied is returned as it is."""
    for module in (part for program in (model, guide) if isinstance(program, nn.Module) for part in program.modules()):
        if isinstance(module, AutoGuide) and module.prototype_trace is not None:
            memo[id(module.prototype_trace)] = module.prototype_trace  # holds the data, and is not changed
    copies: list[Any] = []
    for program in (model, guide):
        wanted = isinstance(program, nn.Module) and (
            any(p.requires_grad for p in program.parameters()) or (program is guide and copies[0] is not model)
        )
        if wanted and only_owned:
            wanted = program in _ORIGINS
        copies.append(_copied_module(program, memo) if wanted else program)
        memo.setdefault(id(program), copies[-1])
    return copies[0], copies[1]


def _copied_module(module: nn.Module, memo: dict[int, Any]) -> nn.Module:
    try:
        with torch.no_grad():
            new: nn.Module = copied(module, memo)
    except (AttributeError, RuntimeError, TypeError, ValueError, NotImplementedError):
        # A lock, a file or the like: its parameters are exchanged in each call instead.
        return module
    _ORIGINS[new] = origin(module)
    name, own = getattr(new, "_pyro_name", ""), f"{getattr(module, '_pyro_name', '')}@{next(_COPIES)}"
    for part in new.modules():
        if isinstance(part, PyroModule):  # or it would share its parameters with the original, called outside a fit
            part._pyro_name = own + part._pyro_name.removeprefix(name)
    return new


def _bound(program: Any, new: Any, learned: list[Tensor], own: StateDict, memo: dict[int, Any]) -> Callable[..., Any]:
    """The copy `new` of a program, bound to what it has learned outside itself."""
    base: Any = unwrap(program)
    held: tuple[Held, ...] = ()
    if isinstance(program, BoundProgram):
        learned = [*learned, *program.params["params"].values()]
        held = tuple(h._replace(own=memo.setdefault(id(h.own), _copied(h.own))) for h in program.held)
    inside = {id(p) for p in base.parameters()} if isinstance(base, nn.Module) and new is not base else set()
    outside = [value for value in learned if id(value) not in inside]
    if not outside:
        found: Callable[..., Any] = new
        return found
    known = {(id(h.holder), h.name) for h in held}
    nets = _nets_with({id(value) for value in outside if isinstance(value, nn.Parameter)})
    return BoundProgram(new, own, (*held, *(h for h in _held_by(nets, memo) if (id(h.holder), h.name) not in known)))


def _nets_with(parameters: set[int]) -> list[nn.Module]:
    """All modules that hold one of these parameters, wherever they are: a plain function does not say which nets it uses."""
    if not parameters:
        return []
    modules = [value for value in gc.get_objects() if issubclass(type(value), nn.Module)]
    return [m for m in modules if any(id(p) in parameters for p in m.__dict__.get("_parameters", {}).values())]


def _held_by(nets: Iterable[nn.Module], memo: dict[int, Any]) -> Iterator[Held]:
    for net in nets:
        for holder in (net._parameters, net._buffers):
            for name, value in holder.items():
                if value is not None:
                    yield Held(holder, name, memo.setdefault(id(value), _copied(value)))
