"""Isolates a computation from global state: random generators, param store, default dtype, validation flags."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pyro
import torch
from pyro.params.param_store import StateDict
from pyro.util import get_rng_state, set_rng_state
from torch.distributions import Distribution

__all__ = ["Scope", "isolated", "param_store", "seed_all"]


class Scope:
    """A private random state and param store, which can be left and re-entered.

    On exit, also by an error, the global random states (torch, NumPy, Python), param store, default dtype and validation
    flags are restored.

    Args:
        seed: for all three generators, at the first entry.

    Attributes:
        store: the state of the param store at the last exit without an error.
        rng: the states of the three generators at that exit; None before the first one.
    """

    def __init__(self, seed: int) -> None:
        self.store: StateDict = {"params": {}, "constraints": {}}
        self._seed = seed
        self.rng: Any = None

    @contextmanager
    def entered(self) -> Iterator[StateDict]:
        """Runs the `with` block inside the scope. Yields the state of its param store."""
        dtype, rng, validate = torch.get_default_dtype(), get_rng_state(), Distribution._validate_args
        try:
            with (
                torch.random.fork_rng(),
                pyro.validation_enabled(pyro.distributions.is_validation_enabled()),
                param_store(self.store) as store,
            ):
                if self.rng is None:
                    seed_all(self._seed)
                else:
                    set_rng_state(self.rng)
                yield store
                self.rng = get_rng_state()
        finally:
            set_rng_state(rng)
            torch.set_default_dtype(dtype)
            Distribution.set_default_validate_args(validate)


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
def param_store(state: StateDict) -> Iterator[StateDict]:
    """Replaces the param store's content by `state`. Unlike the store's own `scope`, keeps the attributes of the tensors."""
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
