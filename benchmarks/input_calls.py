"""A right call of every public function, found by the lists `__all__`."""

from __future__ import annotations

import inspect
import types
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.infer.autoguide import AutoNormal
from torch import Tensor

import guides
import inference
import models
from guides import Amortized, Global, Local, MeanField
from inference import Ascent, objectives, optimisers, stopping
from inference.nuts import Length, pyro_nuts
from inference.programs.log_joint import LogJoint

__all__ = [
    "DEFAULTS",
    "KINDS",
    "PACKAGES",
    "ROWS",
    "Subject",
    "data",
    "draws",
    "pair",
    "plain_guide",
    "plain_model",
    "subjects",
    "weighted",
]

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


def plain_model(x: Tensor) -> None:
    h = pyro.sample("h", dist.Normal(0.0, 1.0))
    with pyro.plate("rows", len(x)):
        pyro.sample("x", dist.Normal(h, 1.0), obs=x.reshape(len(x), -1)[:, 0])


def plain_guide(x: Tensor) -> None:
    del x
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
    "function": lambda _: str,
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
    "calibration": {"simulations": lambda _: 3, "draws": lambda _: 5, "q": lambda kind: pair(kind)[0].posterior},
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
        "stein_check": ("global",),
        "kernel_stein_discrepancy": ("global",),
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

    @property
    def learns(self) -> bool:
        """Whether tensors may be Parameters: models learn theirs."""
        return self.function.__module__.startswith("models")

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
