"""Snapshots of everything global that a call of this suite must leave as it was."""

from __future__ import annotations

import json
import logging
import random
import subprocess
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pyro
import torch

__all__ = ["changes", "changes_by_import", "snapshot", "unchanged"]


def snapshot(*objects: Any) -> dict[str, Any]:
    """The global state by name: generators, param store, flags, filters, levels.

    Args:
        objects: tensors, whose gradients are part of it, and modules, with the gradients of their parameters and their modes.
    """
    store = pyro.get_param_store()
    found: dict[str, Any] = {
        "torch's generator": torch.get_rng_state().tolist(),
        "NumPy's generator": repr(np.random.get_state()),
        "Python's generator": random.getstate(),
        "names in the param store": list(store._params),
        "tensors in the param store": [id(value) for value in store._params.values()],
        "values in the param store": [value.tolist() for value in store._params.values()],
        "constraints in the param store": [id(value) for value in store._constraints.values()],
        "Pyro's handlers": len(pyro.poutine.runtime._PYRO_STACK),
        "Distribution._validate_args": torch.distributions.Distribution._validate_args,
        "default dtype": torch.get_default_dtype(),
        "grad mode": torch.is_grad_enabled(),
        "inference mode": torch.is_inference_mode_enabled(),
        "anomaly mode": torch.is_anomaly_enabled(),
        "threads": torch.get_num_threads(),
        "deterministic algorithms": torch.are_deterministic_algorithms_enabled(),
        "filters of warnings": list(warnings.filters),
        **{f"Pyro's setting {name}": value for name, value in pyro.settings.get().items()},
    }
    for i, value in enumerate(objects):
        tensors = {"": value} if isinstance(value, torch.Tensor) else {}
        if isinstance(value, torch.nn.Module):
            tensors = dict(value.named_parameters())
            found[f"modes of module {i}"] = [part.training for part in value.modules()]
        for name, tensor in tensors.items():
            found[f"gradient of {name or i}"] = None if tensor.grad is None else tensor.grad.tolist()
    return found


def changes(before: dict[str, Any], after: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """What differs, by name: short descriptions of the values before and after."""
    return {
        name: (repr(before[name])[:200], repr(after.get(name))[:200]) for name in before if before[name] != after.get(name)
    }


@contextmanager
def unchanged(*objects: Any) -> Iterator[None]:
    """Asserts that the block leaves the global state as it was, also when it raises."""
    before = snapshot(*objects)
    try:
        yield
    finally:
        found = changes(before, snapshot(*objects))
        assert not found, f"global state was changed: {found}"


def changes_by_import(*modules: str) -> dict[str, Any]:
    """What the import of `modules` changes in a new process that has imported torch and Pyro."""
    script = f"""
import json, sys
sys.path.insert(0, {str(__file__.rsplit("/", 1)[0])!r})
import globals as g
before, levels = g.snapshot(), g.levels()
for module in {modules!r}:
    __import__(module)
after = g.changes(before, g.snapshot())
later = g.levels()
print(json.dumps({{**after, **{{name: later.get(name) for name in levels if levels[name] != later.get(name)}}}}))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def levels() -> dict[str, Any]:
    """Levels and handlers of all loggers that there are."""
    loggers = {"root": logging.root, **logging.root.manager.loggerDict}
    return {
        name: (logger.level, len(logger.handlers)) for name, logger in loggers.items() if isinstance(logger, logging.Logger)
    }
