"""Reference draws by NUTS: the samplers, and a long run that is checked and kept on disk."""

from .base import Chains, Length, Sampler
from .by_numpyro import numpyro_nuts
from .by_nutpie import nutpie_nuts
from .by_pyro import pyro_nuts
from .long_run import LongRun, NotConvergedError, reference
from .samplers import best_sampler

__all__ = [
    "Chains",
    "Length",
    "LongRun",
    "NotConvergedError",
    "Sampler",
    "best_sampler",
    "numpyro_nuts",
    "nutpie_nuts",
    "pyro_nuts",
    "reference",
]
