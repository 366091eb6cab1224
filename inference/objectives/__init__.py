"""Objectives of a fit: each defines a loss and the estimator of its gradient. One file each."""

from .analytic_elbo import AnalyticELBO
from .analytic_kl import AnalyticKL
from .base import Loss, Objective
from .closed_form_entropy import ClosedFormEntropy
from .dreg import DReG
from .enumerated import Enumerated
from .iwae import IWAE
from .renyi import Renyi
from .reweighted_wake_sleep import ReweightedWakeSleep
from .score_function import ScoreFunction, leave_one_out
from .sticking_the_landing import StickingTheLanding
from .trace_elbo import TraceELBO
from .vimco import VIMCO

__all__ = [
    "IWAE",
    "VIMCO",
    "AnalyticELBO",
    "AnalyticKL",
    "ClosedFormEntropy",
    "DReG",
    "Enumerated",
    "Loss",
    "Objective",
    "Renyi",
    "ReweightedWakeSleep",
    "ScoreFunction",
    "StickingTheLanding",
    "TraceELBO",
    "leave_one_out",
]
