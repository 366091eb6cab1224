"""Builds the model of a posterior by its name in posteriordb."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from .loader import Entry, load
from .port import Port

__all__ = ["PortedPosterior", "ports", "problem"]


class PortedPosterior(NamedTuple):
    """A port, its data x, and the entry with the reference draws."""

    model: Port
    x: Tensor
    entry: Entry


def ports() -> dict[str, type[Port]]:
    """The class of each ported posterior, by its name in posteriordb."""
    package = import_module(__package__ or "models.posteriordb")
    exported = (getattr(package, name) for name in package.__all__)
    return {p.entry: p for p in exported if isinstance(p, type) and issubclass(p, Port) and p is not Port}


def problem(path: str | Path, name: str) -> PortedPosterior:
    """Loads a posterior and builds its port.

    Raises:
        FileNotFoundError, ValueError: as `load`; also if the posterior has no port, or its data do not suit it.
    """
    entry = load(path, name)
    if name not in ports():
        raise ValueError(f"{name} has no Pyro port: choose one of {', '.join(sorted(ports()))}.")
    model, x = ports()[name].from_posteriordb(entry.data)
    model.check_data(x)
    return PortedPosterior(model, x, entry)
