"""Objectives, other ways to fit, and estimates, under names that both versions of the suite know."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from functools import partial
from inspect import signature
from typing import Any

import torch
from pandas import DataFrame
from pyro.infer import TraceMeanField_ELBO
from torch import Tensor

from guides import Defensive, FullRank, Global, MeanField
from inference import Ascent, Decision, ais, compare, elbo, fit_unseen, gaps, gradient_variance, iwae, trust
from inference.engine import Eager
from inference.objectives import (
    IWAE,
    VIMCO,
    AnalyticELBO,
    AnalyticKL,
    ClosedFormEntropy,
    DReG,
    Enumerated,
    Renyi,
    ReweightedWakeSleep,
    ScoreFunction,
    StickingTheLanding,
    TraceELBO,
)
from inference.optimisers import BatchAndMatch, DoWG, FixedDraws, NaturalGradient, Pathfinder
from inference.starting import FromPathfinder, FromPrior
from inference.stopping import Plateau

__all__ = ["ESTIMATES", "METHODS", "OBJECTIVES", "STEPS", "tensors"]

STEPS = 30

OBJECTIVES: dict[str, Callable[[], Any]] = {
    "TraceELBO(3)": partial(TraceELBO, 3),
    "AnalyticELBO": AnalyticELBO,
    "AnalyticKL(2)": partial(AnalyticKL, 2),
    "ClosedFormEntropy(2)": partial(ClosedFormEntropy, 2),
    "DReG(3)": partial(DReG, 3),
    "Enumerated": Enumerated,
    "IWAE(3)": partial(IWAE, 3),
    "Renyi(0.5, 3)": partial(Renyi, 0.5, 3),
    "ReweightedWakeSleep(3)": partial(ReweightedWakeSleep, 3),
    "ScoreFunction(3)": partial(ScoreFunction, 3),
    "StickingTheLanding(2)": partial(StickingTheLanding, 2),
    "TraceMeanField_ELBO": TraceMeanField_ELBO,
    "VIMCO(3)": partial(VIMCO, 3),
}
"""Draws are given by position: the name of that argument has changed."""

METHODS: dict[str, Callable[[], dict[str, Any]]] = {
    "BatchAndMatch": lambda: {"optimiser": BatchAndMatch(), "steps": STEPS},
    "DoWG": lambda: {"optimiser": DoWG, "steps": STEPS},
    "FixedDraws": lambda: {"optimiser": FixedDraws(), "steps": STEPS},
    "NaturalGradient": lambda: {"optimiser": NaturalGradient(), "steps": STEPS},
    "Pathfinder": lambda: {"optimiser": Pathfinder(), "steps": STEPS},
    "SGD, constant rate": lambda: {"optimiser": torch.optim.SGD, "lr": 1e-3, "schedule": None, "steps": STEPS},
    "start from Pathfinder": lambda: {"start": FromPathfinder(), "steps": STEPS},
    "start from the prior, 3 restarts": lambda: {"start": FromPrior(), "restarts": 3, "steps": STEPS},
    "to convergence": dict,
    "to a plateau": lambda: {"stop": Plateau(), "lr": 0.02},
}
"""Options of `fit`, apart from engine and seed."""

FORMER = {"draws": ("particles", "samples"), "evidence_draws": ("samples",)}
"""Former names of arguments, in the order in which they are tried."""


def called(function: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """Calls `function` with each option under the name that this version of it uses."""
    known = signature(function).parameters
    for name in FORMER.keys() & options.keys() - known:
        former = next(other for other in FORMER[name] if other in known)
        options[former] = options.pop(name)
    return function(*args, **options)


def tensors(value: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """The tensors and floats inside a result, with their names. Integers are settings and are left out."""
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, float):
        yield name, torch.tensor(value, dtype=torch.float64)
    elif isinstance(value, DataFrame):
        columns = [c for c in value.select_dtypes("number") if "seconds" not in c]
        yield from ((f"{name}.{c}", torch.tensor(value[c].to_numpy(float))) for c in columns)
    else:
        for part, inner in _parts(value):
            yield from tensors(inner, f"{name}.{part}" if name else part)


def _parts(value: Any) -> list[tuple[str, Any]]:
    if isinstance(value, dict):
        return list(value.items())
    if hasattr(value, "_asdict"):
        return list(value._asdict().items())
    return [(f.name, getattr(value, f.name)) for f in fields(value)] if is_dataclass(value) else []


def _trust(fit: Any, x: Any) -> dict[str, Any]:
    verdict = trust(fit, x, seed=2)
    decided = [list(Decision).index(verdict[quantity]) for quantity in ("means", "sds")]
    return {"khat": verdict.khat, "decided": torch.tensor(decided), "log_evidence": verdict.weighted.log_evidence}


def _compare(fit: Any, x: Any) -> DataFrame:
    guides = {"mean field": lambda m: Global(m, MeanField()), "full rank": lambda m: Global(m, FullRank())}
    return called(compare, fit.model, guides, x, steps=STEPS, seeds=2, draws=50, engine=Eager).to_frame()


def _gaps(fit: Any, x: Any, **options: Any) -> Any:
    return called(
        gaps, fit.model, fit.guide, x, draws=50, evidence_draws=200, ascent=Ascent(steps=50), encoder_steps=20, **options
    )


def _variance(fit: Any, x: Any) -> Any:
    objectives = {"TraceELBO": TraceELBO(2), "StickingTheLanding": StickingTheLanding(2)}
    return gradient_variance(fit.model, fit.guide, objectives, x, draws=20).to_frame()


ESTIMATES: dict[str, Callable[[Any, Any], Any]] = {
    "ais": lambda fit, x: ais(fit.model, fit.guide, x, temperatures=20, chains=4, seed=2),
    "compare": _compare,
    "elbo": lambda fit, x: called(elbo, fit.model, fit.guide, x, draws=50, seed=2),
    "fit_unseen": lambda fit, x: fit_unseen(fit.guide, x[:5], ascent=Ascent(steps=50)).table,
    "gaps": _gaps,
    "gaps, AIS": partial(_gaps, temperatures=10),
    "gradient_variance": _variance,
    "iwae": lambda fit, x: called(iwae, fit.model, fit.guide, x, draws=200, seed=2),
    "iwae, Defensive": lambda fit, x: called(iwae, fit.model, Defensive(fit.guide), x, draws=200, seed=2),
    "trust": _trust,
}
"""Functions of a finished fit and the data."""
