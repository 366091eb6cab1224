"""From a name in posteriordb to a model, its data and its truth."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from .loader import Entry, load
from .port import Port

__all__ = ["Problem", "ports", "problem"]


class Problem(NamedTuple):
    """A port, its data and its truth."""

    model: Port
    x: Tensor
    entry: Entry


def ports() -> dict[str, type[Port]]:
    """The ported posteriors: for each name of posteriordb its class, as the package's ``__all__`` lists them."""
    package = import_module(__package__ or "models.posteriordb")
    exported = (getattr(package, name) for name in package.__all__)
    return {p.entry: p for p in exported if isinstance(p, type) and issubclass(p, Port) and p is not Port}


def problem(path: str | Path, name: str) -> Problem:
    """Loads a posterior and builds its port.

    Raises:
        FileNotFoundError, ValueError: as `load`; also if the posterior has no port, its data have other keys, or its
            reference draws have other dimensions than the model's quantities.
    """
    entry = load(path, name)
    if name not in ports():
        raise ValueError(f"{name} has no Pyro port here; there are: {', '.join(sorted(ports()))}.")
    model, x = ports()[name].from_posteriordb(entry.data)
    model.check_data(x)
    return Problem(model, x, entry)
