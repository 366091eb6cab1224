"""Nothing global is changed: a scope in which a fit may do as it likes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pyro
import torch
from pyro.params.param_store import StateDict
from pyro.util import get_rng_state, set_rng_state
from torch import nn
from torch.distributions import Distribution

__all__ = ["Scope", "Scoped", "isolated", "scoped", "unscoped"]


class Scope:
    """A random state and a param store of its own, which can be left and entered again.

    On leaving it, by whatever way, the random states (torch, NumPy, Python), the param store, the default dtype and the
    validation flags are as they were.

    Args:
        seed: for all three generators, when it is entered first.

    Attributes:
        store: the state of the param store, as it was when the scope was left without an error.
        rng: the three generators' states, as they were then; None before it is entered.
    """

    def __init__(self, seed: int) -> None:
        self.store: StateDict = {"params": {}, "constraints": {}}
        self._seed = seed
        self.rng: Any = None

    @contextmanager
    def entered(self) -> Iterator[StateDict]:
        """Everything inside belongs to the scope."""
        dtype, rng, validate = torch.get_default_dtype(), get_rng_state(), Distribution._validate_args
        try:
            with (
                torch.random.fork_rng(),
                pyro.validation_enabled(pyro.distributions.is_validation_enabled()),
                _store(self.store) as store,
            ):
                if self.rng is None:
                    pyro.set_rng_seed(self._seed)
                else:
                    set_rng_state(self.rng)
                yield store
                self.rng = get_rng_state()
        finally:
            set_rng_state(rng)
            torch.set_default_dtype(dtype)
            Distribution.set_default_validate_args(validate)


@contextmanager
def isolated(seed: int) -> Iterator[StateDict]:
    """A `Scope` that is entered once.

    Args:
        seed: for all three generators.

    Yields:
        The state of the scope's param store, filled in when the scope is left without an error.
    """
    with Scope(seed).entered() as store:
        yield store


class Scoped:
    """A Pyro program that runs with param-store values of its own: what a fit returns for a plain function.

    Args:
        program: the model or guide.
        params: the param store's state that holds its values.
    """

    def __init__(self, program: Callable[..., Any], params: StateDict) -> None:
        self.program = program
        self.params = params

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with _store(self.params):
            return self.program(*args, **kwargs)


def scoped(program: Callable[..., Any], params: StateDict, names: set[str]) -> Callable[..., Any]:
    """`program` bound to the values of its parameters `names`, unless it is a module that holds all of them itself.

    A program that is bound already brings its values into `params`.
    """
    if isinstance(program, Scoped):
        params["params"].update(program.params["params"])
        return program
    own = {id(p) for p in program.parameters()} if isinstance(program, nn.Module) else set()
    if all(id(params["params"][name]) in own for name in names):
        return program
    return Scoped(program, params)


def unscoped(program: Callable[..., Any]) -> Callable[..., Any]:
    """The program itself, out of its `Scoped`."""
    return program.program if isinstance(program, Scoped) else program


@contextmanager
def _store(state: StateDict) -> Iterator[StateDict]:
    """Swaps the param store's content for `state`. Unlike the store's own `scope`, it leaves the tensors' attributes alone."""
    store = pyro.get_param_store()
    params, constraints = dict(store.named_parameters()), dict(store._constraints)
    try:
        store.clear()
        store.set_state(state)
        yield state
        state.update({"params": dict(store.named_parameters()), "constraints": dict(store._constraints)})
    finally:
        store.clear()
        store.set_state({"params": params, "constraints": constraints})
