"""`fit` and its parts: the plan of a fit, its start, its learning rate, its runs and its result."""

from .divergence import DivergedError
from .fit import Fit, NonFiniteLossError, cosine, fit
from .many import fit_many
from .plan import FitPlan
from .to_arviz import to_arviz
from .unseen import Ascent, fit_unseen

__all__ = [
    "Ascent",
    "DivergedError",
    "Fit",
    "FitPlan",
    "NonFiniteLossError",
    "cosine",
    "fit",
    "fit_many",
    "fit_unseen",
    "to_arviz",
]
