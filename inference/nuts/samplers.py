"""The choice among the samplers that are installed."""

from __future__ import annotations

from importlib.util import find_spec

from .base import Sampler
from .by_numpyro import numpyro_nuts
from .by_nutpie import nutpie_nuts
from .by_pyro import pyro_nuts

__all__ = ["best_sampler", "packages"]


def best_sampler() -> Sampler:
    """NumPyro's NUTS, which runs all chains at once, if it is installed; else nutpie's if that is installed; else Pyro's."""
    if find_spec("numpyro") is not None:
        return numpyro_nuts
    return nutpie_nuts if find_spec("nutpie") is not None else pyro_nuts


def packages(sampler: Sampler) -> tuple[str, ...]:
    """Packages besides torch and Pyro whose versions determine a sampler's draws."""
    known: dict[Sampler, tuple[str, ...]] = {numpyro_nuts: ("numpyro", "jax"), nutpie_nuts: ("nutpie",)}
    return known.get(sampler, ())
