"""Isolates a computation from global state: random generators, param store, flags, and other threads."""

from __future__ import annotations

import random
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pyro
import torch
from pyro.params.param_store import StateDict
from pyro.util import get_rng_state, set_rng_state
from torch import nn

from models.threads import one_thread

__all__ = ["Scope", "exclusive", "isolated", "param_store", "seed_all", "without_validation"]


class _Open:
    """The scopes that are open.

    Attributes:
        depth: number of scopes inside each other.
        outside: the state of the param store outside all scopes.
    """

    def __init__(self) -> None:
        self.depth = 0
        self.outside: StateDict = {"params": {}, "constraints": {}}


_OPEN = _Open()


class Scope:
    """A private random state and param store, which can be left and re-entered.

    The param store begins with copies of the `pyro.param` values that the global store holds outside all scopes: a fit starts
    where Pyro's SVI ended, and the user's values stay as they are. Parameters of modules come from their modules.

    On exit, also by an error, the global state is restored: random states (torch, NumPy, Python), param store, default dtype,
    all settings of Pyro and torch that concern validation, grad mode, number of threads and warnings filters.

    Args:
        seed: for all three generators, at the first entry.

    Attributes:
        store: the state of the param store at the last exit without an error.
        rng: the states of the three generators at that exit; None before the first one.
    """

    def __init__(self, seed: int) -> None:
        with exclusive():
            self.store: StateDict = _copied(_OPEN.outside)
        self._seed = seed
        self.rng: Any = None

    @contextmanager
    def entered(self) -> Iterator[StateDict]:
        """Runs the `with` block inside the scope. Yields the state of its param store."""
        with exclusive(), param_store(self.store) as store:
            if self.rng is None:
                seed_all(self._seed)
            else:
                set_rng_state(self.rng)
            yield store
            self.rng = get_rng_state()


def seed_all(seed: int) -> None:
    """Seeds torch, Python and NumPy, as `pyro.set_rng_seed`. NumPy takes 32 bits of the seed, the other two all of it."""
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 (Pyro's samplers draw from the global generator)


@contextmanager
def isolated(seed: int) -> Iterator[StateDict]:
    """A `Scope` that is entered once.

    Args:
        seed: for all three generators.

    Yields:
        The state of the scope's param store, filled in on exit without an error.
    """
    with Scope(seed).entered() as store:
        yield store


@contextmanager
def exclusive() -> Iterator[None]:
    """Restores the global state afterwards, except the param store, and keeps other threads out meanwhile.

    Pyro keeps its handlers and parameters, and torch its generator and flags, once for all threads. A thread that calls this
    suite waits until the others are done. Also leaves `torch.inference_mode`, inside which nothing can be learned.
    """
    with one_thread():
        if not _OPEN.depth:
            store = pyro.get_param_store()
            _OPEN.outside = {"params": dict(store.named_parameters()), "constraints": dict(store._constraints)}
        _OPEN.depth += 1
        grad, dtype, settings, threads = (
            torch.is_grad_enabled(),
            torch.get_default_dtype(),
            pyro.settings.get(),
            torch.get_num_threads(),
        )
        rng, filters = get_rng_state(), list(warnings.filters)
        try:
            with torch.random.fork_rng(), torch.inference_mode(False), torch.set_grad_enabled(grad):
                yield
        finally:
            set_rng_state(rng)
            torch.set_default_dtype(dtype)
            pyro.settings.set(**settings)
            if torch.get_num_threads() != threads:
                torch.set_num_threads(threads)
            if warnings.filters != filters:
                warnings.filters[:] = filters  # type: ignore[index]
                # Tells Python that what it knows of earlier warnings may no longer hold.
                warnings.filterwarnings("default", append=True)
                warnings.filters.pop()  # type: ignore[attr-defined]
            _OPEN.depth -= 1


@contextmanager
def without_validation() -> Iterator[None]:
    """Turns off validation by Pyro and torch. Unlike `pyro.validation_enabled`, restores each of its flags to what it was."""
    before = {name: value for name, value in pyro.settings.get().items() if name.startswith("validate_")}
    try:
        pyro.settings.set(**dict.fromkeys(before, False))
        yield
    finally:
        pyro.settings.set(**before)


@contextmanager
def param_store(state: StateDict) -> Iterator[StateDict]:
    """Replaces the param store's content by `state`. Unlike the store's own `scope`, keeps the attributes of the tensors."""
    store = pyro.get_param_store()
    before = store._params, store._param_to_name, store._constraints
    try:
        store.clear()
        store.set_state(state)
        yield state
        state.update({"params": dict(store.named_parameters()), "constraints": dict(store._constraints)})
    finally:
        store._params, store._param_to_name, store._constraints = before


def _copied(state: StateDict) -> StateDict:
    """Copies of all values that do not belong to a module."""
    params = {
        name: value.detach().clone().requires_grad_(value.requires_grad)
        for name, value in state["params"].items()
        if not isinstance(value, nn.Parameter)
    }
    return {"params": params, "constraints": {name: state["constraints"][name] for name in params}}
