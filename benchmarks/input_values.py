"""Values of all kinds to stand for an argument, and what an annotation admits."""

from __future__ import annotations

import collections.abc
import types
import typing
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np
import pyro.distributions as dist
import torch
from input_calls import ROWS, data, draws, pair, plain_guide, plain_model, weighted
from pyro.infer import Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from torch import Tensor

import guides
import models
from guides import FullRank, Global, MeanField
from inference import Ascent, engine, objectives, optimisers, starting, stopping
from inference.nuts import pyro_nuts

__all__ = ["NAMED", "fits"]


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
    "hierarchical model": models.EightSchools,
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
    "weights": weighted,
    "schedule": lambda: lambda optimiser, _: torch.optim.lr_scheduler.StepLR(optimiser, 1),
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


def fits(hint: Any, value: Any, learns: bool) -> bool:
    """Whether an annotation admits a value, as far as its kind: what a checker of types would say, with NumPy's numbers.

    Args:
        hint: the annotation.
        value: the value.
        learns: whether a Parameter may stand for a tensor, as in a model.
    """
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(fits(one, value, learns) for one in inner)
    if hint in PLAIN:
        return PLAIN[hint](value)
    if hint is Tensor:
        is_learned = learns and (isinstance(value, tuple) or getattr(value, "requires_grad", False))
        return is_learned or (isinstance(value, Tensor | np.ndarray | list) and not _unfit(value))
    if origin is None:
        return (
            callable(value) if getattr(hint, "_is_protocol", False) else not isinstance(hint, type) or isinstance(value, hint)
        )
    return _fits_parts(origin, inner, value)


def _fits_parts(origin: Any, inner: tuple[Any, ...], value: Any) -> bool:
    if origin is tuple and inner == (Any, ...):
        return isinstance(value, tuple) and not any(_unfit(v) for v in value if isinstance(v, Tensor))
    if origin is type:
        return isinstance(value, type) and issubclass(value, inner[0])
    if origin is collections.abc.Callable:
        return callable(value)
    return isinstance(value, origin | Tensor | np.ndarray | tuple | list | range)


def _is_boolean(value: Any) -> bool:
    return isinstance(value, bool | np.bool_) or (isinstance(value, Tensor) and value.dtype is torch.bool)


def _is_integer(value: Any) -> bool:
    whole = isinstance(value, int | np.integer) or (getattr(value, "ndim", 1) == 0 and str(value.dtype).endswith("int64"))
    return whole and not _is_boolean(value)


def _is_real(value: Any) -> bool:
    single = isinstance(value, int | float | np.integer | np.floating | Fraction) or getattr(value, "ndim", 1) == 0
    if isinstance(value, complex | np.complexfloating) or "complex" in str(getattr(value, "dtype", "")):
        return False
    try:
        return single and not _is_boolean(value) and isfinite(float(value))
    except (OverflowError, TypeError, ValueError, RuntimeError):
        return False


PLAIN: dict[Any, Callable[[Any], bool]] = {
    Any: lambda _: True,
    type(None): lambda value: value is None,
    bool: lambda value: isinstance(value, bool | np.bool_),
    int: _is_integer,
    float: _is_real,
}


def _unfit(value: Any) -> bool:
    """Whether it is a tensor or an array that no function takes as data."""
    if isinstance(value, Tensor):
        odd = value.is_meta or value.is_complex() or value.layout is not torch.strided or value.requires_grad
        return odd or value.dtype is torch.bool
    return isinstance(value, np.ndarray) and value.dtype.kind not in "fiu"
