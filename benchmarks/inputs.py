"""Calls every public function and every command with generated inputs, and counts the kinds of outcome.

python benchmarks/inputs.py --inputs 20000 --write docs/reliability.md

Each input is a call whose arguments are right except for one or two, which are drawn from values of all kinds. It may end in
four ways that are faults: an answer that is not finite, or bad input taken (silent); an error in the words of torch, Pyro or
Python (obscure); and a call that does not end (hang). Functions are found by the lists `__all__`, commands by the application.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import inspect
import io
import re
import signal
import sys
import tempfile
import time
import traceback
import types
import typing
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, is_dataclass
from decimal import Decimal
from fractions import Fraction
from functools import cache
from importlib import import_module
from math import isfinite
from pathlib import Path
from typing import Any, NamedTuple
from zlib import crc32

import hypothesis
import numpy as np
import pyro
import pyro.distributions as dist
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from pyro.infer import Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from torch import Tensor
from typer.testing import CliRunner

import guides
import inference
import models
from guides import Amortized, FullRank, Global, Local, MeanField
from inference import Ascent, engine, objectives, optimisers, starting, stopping
from inference.cli import app
from inference.nuts import Length, pyro_nuts
from inference.programs.log_joint import LogJoint

__all__ = ["OUTCOMES", "Outcome", "command_outcomes", "function_outcomes", "subjects"]

OUTCOMES = ("right", "refused", "obscure", "silent", "hang")
LIMIT = 30
"""Seconds after which a call counts as a hang."""
PACKAGES = ("inference", "guides", "models")
MODULES = (
    *("inference", "inference.objectives", "inference.optimisers", "inference.starting", "inference.stopping"),
    *("inference.engine", "inference.evidence", "inference.diagnostics", "inference.nuts"),
    *("models", "models.decoders", "models.observations", "models.datasets", "models.images", "models.posteriordb"),
    *("guides", "guides.families", "guides.encoders", "guides.sources"),
)
NO_INPUT = frozenset(
    [
        "Ascent",
        "Comparison",
        "Decision",
        "Estimate",
        "Estimator",
        "Evidence",
        "Finding",
        "Fit",
        "Gaps",
        "GradientVariance",
        "LongRun",
        "Part",
        "Run",
        "Sandwich",
        "Terms",
        "Verdict",
        "Loss",
        "Solution",
        "SolverTask",
        "Closing",
        "Stop",
        "Problem",
        "LOO",
        "MMD",
        "Bounds",
        "Calibration",
        "Change",
        "Coverage",
        "Importance",
        "ImportanceEvidence",
        "MomentErrors",
        "Moments",
        "Scalars",
        "SteinCheck",
        "SteinDiscrepancy",
        "Chains",
        "Length",
        "Dataset",
        "Entry",
        "Exact",
        "PortedPosterior",
        "Reference",
        "DivergedError",
        "NonFiniteLossError",
        "NotConvergedError",
        "CaptureError",
    ]
)
"""Results and records, which the library makes, and errors."""
CALLED_WITHIN = frozenset(
    [
        "leave_one_out",
        "rows",
        "Auto",
        "CompiledLoop",
        "Eager",
        "Graph",
        "SimultaneousFits",
        "capture",
        "Observation",
        "Bernoulli",
        "ContinuousBernoulli",
    ]
)
"""Parts of a step, which a fit calls with its own values."""
ABROAD = frozenset(["faces", "mnist", "entries", "load", "problem"])
"""Functions that read files, which are not here."""


class Outcome(NamedTuple):
    """How one call ended."""

    kind: str
    subject: str
    given: str
    """The arguments that were replaced."""
    detail: str


class _HangError(BaseException):
    pass


# ----------------------------------------------------------------------------------------------------------- right calls


def plain_model(x: Tensor) -> None:
    h = pyro.sample("h", dist.Normal(0.0, 1.0))
    with pyro.plate("rows", len(x)):
        pyro.sample("x", dist.Normal(h, 1.0), obs=x.reshape(len(x), -1)[:, 0])


def plain_guide(x: Tensor) -> None:
    loc = pyro.param("loc", torch.tensor(0.1))
    pyro.sample("h", dist.Normal(loc, pyro.param("scale", torch.tensor(0.5), dist.constraints.positive)))


def pair(kind: str) -> tuple[Any, Any]:
    if kind == "global":
        model: Any = models.GaussianMean(1)
        return model, Global(model, MeanField())
    if kind == "local":
        model = models.LocalGaussian(1)
        return model, Local(model, MeanField())
    if kind == "amortized":
        model = models.LocalGaussian(1)
        return model, Amortized(model, MeanField(), guides.Linear())
    return (plain_model, plain_guide) if kind == "plain" else (plain_model, AutoNormal(plain_model))


ROWS = 6


def data() -> Tensor:
    return torch.linspace(-1.0, 1.5, ROWS).unsqueeze(-1)


def draws(count: int = 120, dim: int = 1) -> Tensor:
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(0))


@cache
def weighted() -> Any:
    model = models.GaussianMean(1)
    return inference.diagnostics.importance(model, guides.Posterior(model), data(), draws=200)


def fitted(kind: str) -> Any:
    return inference.fit(*pair(kind), data(), steps=1, lr=0.01)


QUICK = {"steps": 2, "lr": 0.01}
DEFAULTS: dict[str, Callable[[str], Any]] = {
    "model": lambda kind: pair(kind)[0],
    "guide": lambda kind: pair(kind)[1],
    "x": lambda _: data(),
    "fit": fitted,
    "guides": lambda _: {"mean field": lambda model: Global(model, MeanField())},
    "objectives": lambda _: {"elbo": objectives.TraceELBO()},
    "pairs": lambda kind: [pair(kind)],
    "seeds": lambda _: [0],
    "q": lambda _: dist.Normal(torch.zeros(1), 1.0).to_event(1),
    "p": lambda _: dist.Normal(torch.ones(1), 1.0).to_event(1),
    "family": lambda _: MeanField(),
    "n": lambda _: 3,
    "h": lambda _: {"h": draws(12)},
    "draws": lambda _: {"h": draws(12)},
    "weighted": lambda _: weighted(),
    "first": lambda _: weighted(),
    "second": lambda _: weighted(),
    "a": lambda _: draws(40, 2),
    "b": lambda _: draws(40, 2) + 0.5,
    "mean": lambda _: torch.zeros(2),
    "sd": lambda _: torch.ones(2),
    "reference_mean": lambda _: torch.zeros(2),
    "reference_sd": lambda _: torch.ones(2),
    "names": lambda _: ("mu",),
    "values": lambda _: {"mu": torch.zeros(3)},
    "log_weights": lambda _: draws(50)[:, 0],
    "optimiser": lambda _: torch.optim.Adam([torch.zeros(1, requires_grad=True)]),
    "steps": lambda _: 2,
    "latents": lambda _: 1,
    "joint": lambda _: LogJoint(models.GaussianMean(1), data()),
    "length": lambda _: Length(2, 4, 4, 0.8, 0, False),
    "rows": lambda _: 3,
    "params": lambda _: [torch.zeros(2, requires_grad=True)],
    "function": lambda _: lambda run: None,
    "seconds": lambda _: 1.0,
    "loading": lambda _: torch.ones(3, 1),
    "loc": lambda _: torch.ones(2, 1),
    "covariates": lambda _: torch.ones(4, 2),
    "county": lambda _: torch.tensor([0, 1, 1, 2]),
    "places": lambda _: torch.linspace(0, 1, 4),
    "data_shape": lambda _: (3,),
    "dim": lambda _: 3,
    "data": lambda _: models.datasets.Dataset("own", torch.ones(10, 2), torch.ones(10)),
    "sizes": lambda _: 1,
}
"""A right value for each required argument, by its name; it may depend on the kind of pair."""
OVERRIDES: dict[str, dict[str, Callable[[str], Any]]] = {
    "fit": {name: lambda _, v=v: v for name, v in QUICK.items()},
    "fit_many": {name: lambda _, v=v: v for name, v in QUICK.items()},
    "compare": {**{name: lambda _, v=v: v for name, v in QUICK.items()}, "draws": lambda _: 4, "seeds": lambda _: 1},
    "gaps": {"ascent": lambda _: Ascent(steps=2), "draws": lambda _: 4, "evidence_draws": lambda _: 10},
    "fit_unseen": {"ascent": lambda _: Ascent(steps=2)},
    "ais": {"temperatures": lambda _: 3, "chains": lambda _: 2, "pilot": lambda _: 2},
    "ais_reverse": {
        "temperatures": lambda _: 3, "chains": lambda _: 2, "pilot": lambda _: 2,
        "h": lambda kind: {"h": torch.zeros(1) if kind == "global" else torch.zeros(ROWS, 1)},
    },
    "bidirectional": {"temperatures": lambda _: 3, "chains": lambda _: 2, "pilot": lambda _: 2},
    "reference": {"chains": lambda _: 2, "draws": lambda _: 4, "warmup": lambda _: 4, "sampler": lambda _: pyro_nuts},
    "calibration": {"simulations": lambda _: 3, "draws": lambda _: 5, "q": lambda kind: (lambda x: pair(kind)[0].posterior(x))},
    "elbo": {"draws": lambda _: 10}, "iwae": {"draws": lambda _: 10}, "to_arviz": {"draws": lambda _: 5},
    "gradient_variance": {"draws": lambda _: 3}, "importance": {"draws": lambda _: 100}, "trust": {"draws": lambda _: 500},
    "loo": {"draws": lambda _: 50}, "predictive_coverage": {"draws": lambda _: 20}, "linear_response": {"draws": lambda _: 8},
    "mmd": {"permutations": lambda _: 5}, "kernel_stein_discrepancy": {"bootstrap": lambda _: 5},
    "drift": {"chains": lambda _: 100, "moves": lambda _: 1}, "c2st": {"folds": lambda _: 2},
    "by_name": {"values": lambda _: {"mu": 0.5}}, "stein_check": {"draws": lambda _: {"h": draws(400)}},
    "FromDraws": {"latents": lambda _: {"h": draws(5)}}, "FromInit": {"function": lambda _: (lambda site: site["fn"]())},
    "DataSets": {"model": lambda _: models.GaussianMean(1)}, "active_units": {"guide": lambda _: fitted("amortized").guide},
    "MaxSteps": {"steps": lambda _: 5}, "binarise": {"x": lambda _: torch.rand(3, 2)}, "LinearVAE": {"latents": lambda _: 1},
    "quantities": {"h": lambda _: {"h": draws(4)}}, "Defensive": {"guide": lambda _: pair("global")[1]},
    "Posterior": {"model": lambda _: models.GaussianMean(1)},
    "Radon": {}, "GaussianMixture": {},
}  # fmt: skip
"""Arguments of one function that keep its call short, or whose name means something else there."""
KINDS: dict[str, tuple[str, ...]] = defaultdict(
    lambda: ("global", "local", "plain"),
    {
        **dict.fromkeys(("analytic_elbo", "evidence_minus_kl", "best_elbo", "ais", "ais_reverse"), ("global", "local")),
        **dict.fromkeys(("bidirectional", "linear_response", "DataSets", "drift"), ("global",)),
        **dict.fromkeys(("fit_unseen", "calibration", "active_units"), ("local", "amortized")),
        "gaps": ("global", "local", "amortized"),
        "fit": ("global", "local", "amortized", "plain", "auto"),
        "loo": ("global",),
        "stein_check": ("global", "plain"),
        "kernel_stein_discrepancy": ("global", "plain"),
    },
)
"""The pairs that a function takes."""


@dataclass
class Subject:
    """One public function, and how often it is called."""

    name: str
    function: Callable[..., Any]
    weight: float = 1.0
    options: dict[str, inspect.Parameter] = field(default_factory=dict)

    def __post_init__(self) -> None:
        parameters = inspect.signature(self.function).parameters
        self.options = {n: p for n, p in parameters.items() if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)}
        self.several = next((n for n, p in parameters.items() if p.kind is p.VAR_POSITIONAL), None)

    def right(self, kind: str) -> dict[str, Any]:
        """Arguments of a right call."""
        own = OVERRIDES.get(self.name, {})
        needed = [n for n, p in self.options.items() if p.default is p.empty and n not in own]
        missing = [n for n in needed if n not in DEFAULTS]
        assert not missing, f"{self.name}: say what a right {missing[0]} is, in DEFAULTS or OVERRIDES"
        made: dict[str, Any] = {n: DEFAULTS[n](kind) for n in needed} | {n: make(kind) for n, make in own.items()}
        if "model" in made and "guide" in made:
            made["model"], made["guide"] = pair(kind)
        if self.name in ("fit_unseen",):
            done = fitted(kind)
            made["guide"] = done.guide
        return made

    def call(self, values: Mapping[str, Any]) -> Any:
        """Calls the function, with `values` by name."""
        values = dict(values)
        several = values.pop(self.several, None) if self.several else None
        if several is not None:
            return self.function(several, **values)
        return self.function(**values) if not self.several else self.function(1, **values)


@cache
def subjects() -> tuple[Subject, ...]:
    """Every public function and class that takes input, by `__all__`."""
    found: dict[int, Subject] = {}
    for module in map(import_module, MODULES):
        for name in module.__all__:
            value = getattr(module, name)
            known = name in NO_INPUT | CALLED_WITHIN | ABROAD or id(value) in found or isinstance(value, types.ModuleType)
            if known or inspect.isabstract(value) or getattr(value, "_is_protocol", False) or not callable(value):
                continue
            if value.__module__.split(".")[0] not in PACKAGES or value in (stopping.Watch, optimisers.Solver, guides.Family):
                continue
            if inspect.isclass(value) and value.__name__ in ("Port", "Target", "Start", "Rule", "Model", "LocalModel"):
                continue
            found[id(value)] = Subject(name, value)
    return tuple(sorted(found.values(), key=lambda subject: subject.name))


# ----------------------------------------------------------------------------------------------------------- other values


class _Nothing:
    """An object of no known kind."""


def _broken(*_: Any, **__: Any) -> Any:
    return None


TENSORS: dict[str, Callable[[], Any]] = {
    "float64": lambda: data().double(),
    "int64": lambda: torch.arange(ROWS).unsqueeze(-1),
    "bool": lambda: data() > 0,
    "complex": lambda: data().to(torch.complex64),
    "sparse": lambda: data().to_sparse(),
    "meta": lambda: data().to("meta"),
    "with a graph": lambda: data().requires_grad_(),
    "Parameter": lambda: torch.nn.Parameter(data()),
    "NaN": lambda: data() * torch.nan,
    "inf": lambda: data() * torch.inf,
    "huge": lambda: data() * 1e30,
    "tiny": lambda: data() * 1e-40,
    "one row": lambda: data()[:1],
    "no rows": lambda: data()[:0],
    "one dimension": lambda: data()[:, 0],
    "three dimensions": lambda: data().unsqueeze(0),
    "two columns": lambda: data().expand(ROWS, 2),
    "shape ()": lambda: torch.tensor(1.5),
    "integer of shape ()": lambda: torch.tensor(3),
    "boolean of shape ()": lambda: torch.tensor(True),
    "NaN of shape ()": lambda: torch.tensor(torch.nan),
    "half": lambda: data().half(),
    "array": lambda: data().numpy(),
    "array of float64": lambda: data().double().numpy(),
    "array of integers": lambda: np.arange(ROWS)[:, None],
    "array of uint64": lambda: np.full((ROWS, 1), 2**63, dtype=np.uint64),
    "array of booleans": lambda: data().numpy() > 0,
    "array of strings": lambda: np.array([["a"]] * ROWS),
    "array of objects": lambda: np.array([[None]] * ROWS),
    "complex array": lambda: data().numpy().astype(complex),
    "array of dates": lambda: np.full((ROWS, 1), np.datetime64("2020-01-01")),
    "array with NaN": lambda: np.full((ROWS, 1), np.nan),
    "array of 1e300": lambda: np.full((ROWS, 1), 1e300),
    "array of shape ()": lambda: np.array(3),
    "read-only array": lambda: np.broadcast_to(np.float32(1.0), (ROWS, 1)),
    "masked array": lambda: np.ma.masked_array(data().numpy(), data().numpy() > 0),
    "list": lambda: data().tolist(),
    "flat list": lambda: [1, 2, 3],
    "ragged list": lambda: [[1.0], [2.0, 3.0]],
    "list of strings": lambda: ["a", "b"],
    "list of None": lambda: [None, None],
    "empty list": list,
    "tuple": lambda: (data(),),
    "tuple of array": lambda: (data().numpy(),),
    "tuple of two": lambda: (data(), data()),
    "empty tuple": lambda: (),
    "tuple of None": lambda: (None,),
    "mapping": lambda: {"h": draws(12)},
    "mapping of arrays": lambda: {"h": draws(12).numpy()},
    "mapping of NaN": lambda: {"h": draws(12) * torch.nan},
    "mapping of strings": lambda: {"h": "a"},
    "mapping without h": lambda: {"g": draws(12)},
    "mapping by number": lambda: {1: draws(12)},
    "empty mapping": dict,
}
NUMBERS: tuple[Any, ...] = (
    *(0, 1, 2, 3, -1, -7, 10**10, 2**31, 2**63 - 1, 2**63, 2**64, 10**30, 10**400),
    *(0.0, -0.0, 0.5, 0.9, 1.0, 1.5, 2.0, -0.5, 1e-3, 1e-320, 1e300, float("nan"), float("inf"), -float("inf")),
    *(np.int8(2), np.int64(3), np.uint64(2**63), np.int64(-3), np.float32(0.5), np.float64(0.25), np.float64("nan")),
    *(np.float16(0.5), np.longdouble(0.5), np.bool_(True), True, False, Fraction(1, 2), Decimal("0.5"), 1j, np.complex64(1)),
)
WORDS: tuple[Any, ...] = ("", "a", "3", "0.5", "Adam", "data", "h", "None", "\x00", "ü" * 200, b"3", np.str_("a"))
OBJECTS: dict[str, Callable[[], Any]] = {
    "None": lambda: None,
    "object": _Nothing,
    "class": lambda: _Nothing,
    "function": lambda: _broken,
    "module": lambda: torch.nn.Linear(1, 1),
    "set": lambda: {1},
    "generator": lambda: (i for i in ()),
    "range": lambda: range(2),
    "Path": lambda: Path("nowhere"),
    "model": lambda: models.GaussianMean(1),
    "local model": lambda: models.LocalGaussian(1),
    "model of two": lambda: models.GaussianMean(2),
    "double model": lambda: models.GaussianMean(1).double(),
    "hierarchical model": lambda: models.EightSchools(),
    "mixture": lambda: models.GaussianMixture(torch.ones(2, 1)),
    "model class": lambda: models.GaussianMean,
    "plain model": lambda: plain_model,
    "plain guide": lambda: plain_guide,
    "guide": lambda: pair("global")[1],
    "local guide": lambda: pair("local")[1],
    "amortized guide": lambda: pair("amortized")[1],
    "autoguide": lambda: AutoNormal(plain_model),
    "guide class": lambda: Global,
    "prior": lambda: guides.Prior(models.GaussianMean(1)),
    "family": MeanField,
    "full rank": FullRank,
    "blocks": lambda: guides.Blocks(2, 3),
    "point mass": guides.Delta,
    "discrete family": guides.Bernoulli,
    "family class": lambda: FullRank,
    "encoder": guides.Linear,
    "objective": objectives.StickingTheLanding,
    "objective class": lambda: objectives.IWAE,
    "Pyro's ELBO": Trace_ELBO,
    "optimiser class": lambda: torch.optim.SGD,
    "optimiser": lambda: torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1),
    "solver": optimisers.FixedDraws,
    "solver class": lambda: optimisers.Pathfinder,
    "LBFGS": lambda: torch.optim.LBFGS,
    "rule": lambda: stopping.MaxSteps(2),
    "rules": lambda: [stopping.MaxSteps(2), stopping.MaxSeconds(1.0)],
    "rule class": lambda: stopping.Converged,
    "start": starting.FromInit,
    "start class": lambda: starting.FromPrior,
    "engine": lambda: engine.Eager,
    "graph engine": lambda: engine.Graph,
    "abstract engine": lambda: engine.Engine,
    "distribution": lambda: dist.Normal(torch.zeros(1), 1.0).to_event(1),
    "distribution of two": lambda: dist.MultivariateNormal(torch.zeros(2), torch.eye(2)),
    "gamma": lambda: dist.Gamma(torch.ones(1), 1.0).to_event(1),
    "sampler": lambda: pyro_nuts,
    "ascent": lambda: Ascent(steps=2),
    "bad ascent": lambda: Ascent(steps=1.5),
    "weights": lambda: weighted(),
    "schedule": lambda: lambda optimiser, steps: torch.optim.lr_scheduler.StepLR(optimiser, 1),
    "transform": lambda: torch.tanh,
    "transform that drops rows": lambda: lambda x: x[:-1],
    "factories": lambda: {"a": AutoNormal},
    "factories of nothing": lambda: {"a": _broken},
    "factories of a number": lambda: {"a": 1},
    "seeds": lambda: [0, 1],
    "seeds twice": lambda: [0, 0],
    "bad seeds": lambda: [0.5],
    "pairs": lambda: [pair("global")],
    "pair of one": lambda: [(plain_model,)],
    "levels": lambda: (0.5, 0.9),
    "bad levels": lambda: (0.5, 1.5),
    "shape": lambda: (2, 2),
    "bad shape": lambda: (2, -1),
}
NAMED: dict[str, Callable[[], Any]] = {
    **{f"tensor: {name}": make for name, make in TENSORS.items()},
    **{shown: (lambda v=v: v) for v in NUMBERS + WORDS for shown in [f"{type(v).__name__}: {str(v)[:30]!r}"]},
    **OBJECTS,
}
"""Every value that may take the place of an argument, by a name for the report."""


def fits(hint: Any, value: Any, subject: Subject) -> bool:
    """Whether an annotation admits a value, as far as its kind: what a checker of types would say, with NumPy's numbers."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(fits(one, value, subject) for one in inner)
    if hint is Any:
        return True
    if hint is type(None):
        return value is None
    boolean = isinstance(value, bool | np.bool_) or (isinstance(value, Tensor) and value.dtype is torch.bool)
    if hint is bool:
        return isinstance(value, bool | np.bool_)
    if hint is int:
        whole = isinstance(value, int | np.integer) or (getattr(value, "ndim", 1) == 0 and str(value.dtype).endswith("int64"))
        return whole and not boolean
    if hint is float:
        real = isinstance(value, int | float | np.integer | np.floating | Fraction) and not boolean
        return (real or (getattr(value, "ndim", 1) == 0 and not boolean and not _complex(value))) and _finite_number(value)
    if hint is Tensor:
        learned = isinstance(value, torch.nn.Parameter) and subject.function.__module__.startswith("models")
        return learned or (isinstance(value, Tensor | np.ndarray | list) and not _unfit(value))
    if origin is tuple and inner == (Any, ...):
        return isinstance(value, tuple) and not any(_unfit(v) for v in value if isinstance(v, Tensor))
    if origin is type:
        return isinstance(value, type) and issubclass(value, inner[0])
    if origin is types.GenericAlias or (origin is not None and not isinstance(origin, type)):
        return True
    if origin is not None and "Callable" in str(origin):
        return callable(value)
    if origin is not None:
        return isinstance(value, origin | Tensor | np.ndarray | tuple) or (
            "Sequence" in str(origin) and isinstance(value, range)
        )
    if getattr(hint, "_is_protocol", False):
        return callable(value)
    return isinstance(value, hint) if isinstance(hint, type) else True


def _complex(value: Any) -> bool:
    return isinstance(value, complex | np.complexfloating) or "complex" in str(getattr(value, "dtype", ""))


def _finite_number(value: Any) -> bool:
    try:
        return isfinite(float(value))
    except (OverflowError, TypeError, ValueError, RuntimeError):
        return False


def _unfit(value: Any) -> bool:
    """Whether it is a tensor or an array that no function takes as data."""
    if isinstance(value, Tensor):
        odd = value.is_meta or value.is_complex() or value.layout is not torch.strided or value.requires_grad
        return odd or value.dtype is torch.bool
    return isinstance(value, np.ndarray) and value.dtype.kind not in "fiu"


# ----------------------------------------------------------------------------------------------------------- outcomes

MAY_BE_NAN = {
    "Stop.distance", "Run.best", "Run.evidence", "Run.elbo", "Verdict.ess", "Verdict.khat", "Evidence.khat", "Importance.khat",
    "Importance.khat_per_datum", "Bounds.divergence", "Bounds.mean", "Bounds.sd", "Estimator.squared_bias",
    "Estimator.squared_bias_se", "LOO.khat", "psis", "Coverage.share", "Scalars.draws",
}  # fmt: skip
"""Fields whose documentation says when they are NaN or infinite."""


def numbers_in(value: Any, path: str = "", depth: int = 0) -> Iterator[tuple[str, Any]]:
    """The numbers in a result, each with the field that holds it."""
    if isinstance(value, float | Tensor):
        yield path, value
    elif depth > 4 or isinstance(value, str | torch.nn.Module) or callable(value):
        return
    elif hasattr(value, "_asdict"):
        for name, member in value._asdict().items():
            yield from numbers_in(member, f"{type(value).__name__}.{name}", depth + 1)
    elif is_dataclass(value):
        for name in value.__dataclass_fields__:
            yield from numbers_in(getattr(value, name), f"{type(value).__name__}.{name}", depth + 1)
    elif isinstance(value, Mapping):
        for member in value.values():
            yield from numbers_in(member, path, depth + 1)
    elif isinstance(value, list | tuple):
        for member in value:
            yield from numbers_in(member, path, depth + 1)


def not_finite(result: Any, name: str) -> str | None:
    """The first field of a result with a number that is not finite and not documented to be so."""
    for path, value in numbers_in(result, name):
        fine = (
            value.isfinite().all()
            if isinstance(value, Tensor) and value.numel()
            else isfinite(value)
            if isinstance(value, float)
            else True
        )
        if not fine and path not in MAY_BE_NAN:
            return path or "the result"
    return None


@cache
def raises_of(file: str) -> tuple[tuple[int, int], ...]:
    """The lines of each `raise` in a module."""
    tree = ast.parse(Path(file).read_text())
    return tuple((n.lineno, n.end_lineno or n.lineno) for n in ast.walk(tree) if isinstance(n, ast.Raise))


def ours(error: BaseException) -> bool:
    """Whether the error was raised by a statement of the library, rather than by what it calls."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    root = Path(inference.__file__).parent.parent
    inside = any(Path(last.filename).is_relative_to(root / package) for package in PACKAGES)
    line = last.lineno or 0
    return inside and any(first <= line <= end for first, end in raises_of(last.filename))


@contextlib.contextmanager
def time_limit() -> Iterator[None]:
    def stop(*_: Any) -> None:
        raise _HangError

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, LIMIT)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def called(subject: Subject, kind: str, changes: Mapping[str, str]) -> Outcome:
    """The outcome of one call in which some arguments are replaced by values of `NAMED`."""
    values = {name: NAMED[value]() for name, value in changes.items()}
    label = ", ".join(f"{name} = {value}" for name, value in changes.items())
    silent = io.StringIO()
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(silent), contextlib.redirect_stdout(silent), time_limit():
            warnings.simplefilter("ignore")
            result = subject.call(subject.right(kind) | values)
            if inspect.isgenerator(result):
                list(result)
    except _HangError:
        return Outcome("hang", subject.name, label, kind)
    except Exception as error:
        text = f"{type(error).__name__}: {str(error)[:160]}"
        named = [name for name in changes if name.rstrip("s") in str(error)] or subject.name in str(error)
        refusal = ours(error) and (named or isinstance(error, ValueError | TypeError | RuntimeError | OSError))
        where = traceback.extract_tb(error.__traceback__)[-1]
        at = f" ({Path(where.filename).name}:{where.lineno}; {kind})"
        return Outcome("refused" if refusal else "obscure", subject.name, label, text + ("" if refusal else at))
    hints = hints_of(subject.function)
    wrong = [name for name, value in values.items() if name in hints and not fits(hints[name], value, subject)]
    if wrong:
        return Outcome("silent", subject.name, label, f"takes a bad {wrong[0]} ({kind})")
    if (path := not_finite(result, subject.name)) is not None:
        return Outcome("silent", subject.name, label, f"{path} is not finite ({kind})")
    return Outcome("right", subject.name, label, "")


@cache
def hints_of(function: Any) -> dict[str, Any]:
    return typing.get_type_hints(
        function.__init__ if inspect.isclass(function) and not hasattr(function, "_fields") else function
    )


# ----------------------------------------------------------------------------------------------------------- campaign


def calls(subject: Subject) -> st.SearchStrategy[tuple[str, dict[str, str]]]:
    """Strategy for the kind of pair and the one or two arguments to replace."""
    names = [*subject.options, *([subject.several] if subject.several else [])]
    kinds = st.sampled_from(KINDS[subject.name])
    if not names:
        return st.tuples(kinds, st.just({}))
    hints = hints_of(subject.function)
    pairs = []
    for name in names:
        apt = [value for value in sorted(NAMED) if fits(hints.get(name, Any), NAMED[value](), subject)]
        value = st.sampled_from(sorted(NAMED)) | st.sampled_from(apt) if apt else st.sampled_from(sorted(NAMED))
        pairs.append(st.tuples(st.just(name), value))
    return st.tuples(kinds, st.lists(st.one_of(pairs), min_size=1, max_size=2, unique_by=lambda drawn: drawn[0]).map(dict))


def function_outcomes(total: int, seed: int, only: str | None = None) -> list[Outcome]:
    """Outcomes of `total` calls, shared out to the functions by the time that a call takes and the number of arguments."""
    chosen = [subject for subject in subjects() if only is None or re.fullmatch(only, subject.name)]
    for subject in chosen:
        begin = time.perf_counter()
        with contextlib.suppress(Exception), contextlib.redirect_stderr(io.StringIO()):
            subject.call(subject.right(KINDS[subject.name][0]))
        seconds = time.perf_counter() - begin
        subject.weight = min(4.0, max(1.0, len(subject.options) / 2)) * min(1.0, max(0.1, 0.03 / max(seconds, 1e-3)))
    whole = sum(subject.weight for subject in chosen)
    found: list[Outcome] = []
    for subject in chosen:
        count = max(1, round(total * subject.weight / whole))
        generate(
            calls(subject),
            count,
            seed + crc32(subject.name.encode()),
            lambda drawn, subject=subject: found.append(called(subject, *drawn)),
        )
    return found


def generate(strategy: st.SearchStrategy[Any], count: int, seed: int, use: Callable[[Any], None]) -> None:
    """Calls `use` with `count` examples of a strategy."""
    done = 0
    while done < count:
        drawn: list[Any] = []

        @hypothesis.seed(seed + 7919 * done)
        @settings(
            max_examples=min(count - done, 500), phases=[Phase.generate], database=None, deadline=None,
            suppress_health_check=list(HealthCheck),
        )  # fmt: skip
        @given(strategy)
        def collect(example: Any) -> None:
            drawn.append(example)  # noqa: B023 (called in this turn of the loop)

        collect()
        for example in drawn[: count - done]:
            use(example)
        if not drawn:
            return
        done += len(drawn)


OPTION_VALUES = (
    *("", "a", "0", "1", "-1", "2", "1.5", "nan", "inf", "-inf", "1e400", "99999999999999999999", "True", "None", " ", "3 "),
    *(
        "MeanField",
        "Local(MeanField)",
        "Global(MeanField)",
        "Global(LowRank(2))",
        "Global(LowRank(1.5))",
        "Global(LowRank(-1))",
    ),
    *("Global(MeanField(scale=0))", "Global(MeanField(scale='a'))", "Global(MeanField, MeanField)", "Global()", "Global"),
    *("Global(**x)", "Global(*x)", "Global(MeanField, **{})", "Global(MeanField", "Global(MeanField))", "Global(MeanField)()"),
    *("Global(MeanField, plate=3)", "Global(Nothing)", "Global(FullRank(scale=nan))", "Global(LowRank(True))", "Prior"),
    *("AutoNormal", "AutoNormal(init_scale=-1)", "AutoNormal(init_scale='a')", "AutoDelta", "AutoNormal, AutoNormal", ","),
    *(
        "Amortized(MeanField, MLP((8,)))",
        "Amortized(MeanField, MLP(8))",
        "Amortized(MeanField, MLP((0,)))",
        "lambda: 1",
        "[1]",
    ),
    *("GaussianMean", "LocalGaussian", "GaussianMean(dim=2)", "GaussianMean(3)", "NoModel", "EightSchools", "gaussianmean"),
    *("digits", "diabetes", "digits(binarised=True)", "digits(scaled='a')", "digits(1)", "Digits", "mnist(path='nowhere')"),
    *("TraceELBO", "TraceELBO(0)", "TraceELBO(1.5)", "TraceELBO(draws=-3)", "IWAE(2)", "AnalyticELBO", "ScoreFunction(1)"),
    *("Renyi(alpha=1)", "Renyi(alpha='a')", "TraceELBO, IWAE"),
    *("Adam", "SGD(momentum=0.9)", "SGD(momentum=-1)", "SGD(momentum='a')", "Adam(lr=2)", "Adam(3)", "FixedDraws", "LBFGS"),
    *("FixedDraws(draws=1)", "Adam(betas=3)", "Adam(betas=(0.5, 2))", "Adam, SGD", "DoG", "NaturalGradient(tolerance=0)"),
    *("Converged", "MaxSteps(2)", "MaxSteps(1.5)", "MaxSteps(0)", "MaxSeconds('a')", "MaxSeconds(nan)", "Plateau(least=3)"),
    *("MaxSteps", "MaxSteps(2), MaxSeconds(1)", "When(3)", "FromPrior", "FromInit", "FromPrior(draws=1)", "FromDraws"),
    *("FromInit(function=3)", "FromInit, FromPrior", "ü", "\x00", "(", "()", "((((((", "1" * 500, "Global(" * 200, "-" * 50),
)
"""Values for options of the command line, right and wrong."""
COMMANDS: dict[str, dict[str, str]] = {
    "compare": {"--model": "GaussianMean", "--guides": "Global(MeanField)", "--steps": "2", "--seeds": "1", "--draws": "4",
                "--jobs": "1"},
    "fit": {"--model": "GaussianMean", "--guide": "Global(MeanField)", "--steps": "2", "--draws": "4"},
    "evidence": {"--model": "GaussianMean", "--guide": "Global(MeanField)", "--steps": "2", "--draws": "4", "--rows": "5"},
    "gaps": {"--model": "LocalGaussian", "--guides": "Local(MeanField)", "--steps": "2", "--draws": "4", "--rows": "5",
             "--ascent-steps": "2", "--evidence-draws": "4", "--jobs": "1"},
    "trust": {"--model": "GaussianMean", "--guide": "Global(MeanField)", "--steps": "2", "--draws": "500"},
    "list": {},
}  # fmt: skip


def options_of(command: str) -> list[str]:
    """The options of a command, from the application itself."""
    import typer.main

    found = typer.main.get_command(app).commands[command].params  # type: ignore[attr-defined]
    return sorted(option.opts[0] for option in found if option.opts[0] not in ("--help", "--out"))


def command_outcome(command: str, changes: Mapping[str, str], out: Path) -> Outcome:
    """The outcome of one command in which some options are replaced."""
    right = COMMANDS[command] | dict(changes)
    words = [word for name, value in right.items() for word in ([name] if name == "--overwrite" else [name, value])]
    if "--out" in _out(command):
        words += ["--out", str(out), *([] if "--overwrite" in right else ["--overwrite"])]
    label = " ".join(f"{name}={value!r}" for name, value in changes.items())
    try:
        with warnings.catch_warnings(), time_limit():
            warnings.simplefilter("ignore")
            result = CliRunner().invoke(app, [command, *words])
    except _HangError:
        return Outcome("hang", f"taut {command}", label, "")
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        error = result.exception
        where = traceback.extract_tb(error.__traceback__)[-1]
        kind = "hang" if isinstance(error, _HangError) else "obscure"
        detail = f"{type(error).__name__}: {str(error)[:160]} ({Path(where.filename).name}:{where.lineno})"
        return Outcome(kind, f"taut {command}", label, detail)
    text = " ".join(result.output.split())
    if result.exit_code:
        clear = "rror" in text or "Usage" in text
        return Outcome("refused" if clear else "obscure", f"taut {command}", label, text[-160:])
    if re.search(r"(?<![\w-])(nan|inf)(?!\w)", text):
        return Outcome("silent", f"taut {command}", label, text[:300])
    return Outcome("right", f"taut {command}", label, "")


def _out(command: str) -> list[str]:
    import typer.main

    return [option.opts[0] for option in typer.main.get_command(app).commands[command].params]  # type: ignore[attr-defined]


def command_outcomes(total: int, seed: int) -> list[Outcome]:
    """Outcomes of `total` command lines."""
    found: list[Outcome] = []
    with tempfile.TemporaryDirectory() as folder:
        for command in COMMANDS:
            names = options_of(command)
            if not names:
                found.append(command_outcome(command, {}, Path(folder)))
                continue
            one = st.dictionaries(st.sampled_from(names), st.sampled_from(OPTION_VALUES), min_size=1, max_size=2)
            use = lambda drawn, command=command: found.append(command_outcome(command, drawn, Path(folder, command)))  # noqa: E731
            generate(one, total // (len(COMMANDS) - 1), seed, use)
    return found


def table(found: list[Outcome]) -> str:
    """A table in Markdown: one row for each function and command."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for outcome in found:
        counts[outcome.subject][outcome.kind] += 1
    lines = ["| function | inputs | " + " | ".join(OUTCOMES) + " |", "|---|" + "---|" * (1 + len(OUTCOMES))]
    whole: Counter[str] = sum(counts.values(), Counter())
    for name, each in [("**all**", whole), *sorted(counts.items())]:
        cells = " | ".join(str(each[kind]) for kind in OUTCOMES)
        lines.append(f"| {name if name.startswith('*') else f'`{name}`'} | {each.total()} | {cells} |")
    return "\n".join(lines)


def main() -> None:
    from results import environment

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=20_000, help="calls of functions")
    parser.add_argument("--commands", type=int, default=1500, help="command lines")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", help="a pattern for the names of functions")
    parser.add_argument("--write", type=Path, help="the document whose table is replaced")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    found = function_outcomes(chosen.inputs, chosen.seed, chosen.only) if chosen.inputs else []
    found += command_outcomes(chosen.commands, chosen.seed) if chosen.commands else []
    examples: dict[tuple[str, ...], list[Outcome]] = defaultdict(list)
    for outcome in found:
        if outcome.kind not in ("right", "refused"):
            examples[outcome.kind, outcome.subject, re.sub(r"[\d.]+", "#", outcome.detail)[:90]].append(outcome)
    for (kind, subject, _), same in sorted(examples.items(), key=lambda item: (item[0][0], -len(item[1]))):
        print(f"{len(same):4} {kind} {subject}({same[0].given}): {same[0].detail}", file=sys.stderr)
    text = f"{table(found)}\n\nSeed {chosen.seed}, hypothesis {hypothesis.__version__}. {environment()}"
    print(text)
    if chosen.write is not None:
        begin, end = "<!-- inputs.py -->", "<!-- /inputs.py -->"
        old = chosen.write.read_text()
        chosen.write.write_text(old[: old.index(begin) + len(begin)] + f"\n{text}\n" + old[old.index(end) :])


if __name__ == "__main__":
    main()
