"""Names typed at the command line, resolved to exports of models, guides, inference, Pyro and torch."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from functools import partial
from typing import Any, NamedTuple, get_type_hints

import pyro.infer.autoguide as autoguides
import torch
from pyro.infer.autoguide import AutoContinuous, AutoDiscreteParallel, AutoGuide, AutoGuideList
from torch import Tensor
from torch.optim import LBFGS, Optimizer

import guides
import models
from guides import Family, Guide
from models import Model, datasets, images
from models.datasets import Dataset

from .. import objectives, optimisers, starting, stopping
from ..optimisers import JointStep, Solver
from ..programs.validation import naming
from ..starting import Start
from ..stopping import Rule, When

__all__ = [
    "AUTOGUIDES",
    "DATASETS",
    "ENCODERS",
    "FAMILIES",
    "MODELS",
    "OBJECTIVES",
    "OPTIMISERS",
    "RULES",
    "SOURCES",
    "STARTS",
    "UsageError",
    "only",
    "parse_guide",
    "parse_guides",
    "parse_objectives",
    "parse_optimisers",
    "parse_rules",
    "parse_start",
    "problem",
]


def _concrete(module: Any, base: type) -> dict[str, Any]:
    exports = {name: getattr(module, name) for name in module.__all__}
    return {
        name: value
        for name, value in exports.items()
        if inspect.isclass(value) and issubclass(value, base) and not inspect.isabstract(value)
    }


def _required(function: Callable[..., Any]) -> list[str]:
    parameters = inspect.signature(function).parameters.values()
    return [p.name for p in parameters if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]


MODELS: dict[str, type[Model]] = _concrete(models, Model)
SOURCES: dict[str, type[Guide]] = _concrete(guides, Guide)
FAMILIES: dict[str, type[Family]] = _concrete(guides, Family)
ENCODERS: dict[str, Any] = {name: getattr(guides.encoders, name) for name in guides.encoders.__all__}
AUTOGUIDES: dict[str, type[AutoGuide]] = {
    name: guide
    for name, guide in _concrete(autoguides, AutoGuide).items()
    if guide not in (AutoGuide, AutoContinuous, AutoGuideList, AutoDiscreteParallel) and len(_required(guide)) == 1
}
DATASETS: dict[str, Callable[..., Dataset]] = {
    name: getattr(module, name)
    for module in (datasets, images)
    for name in module.__all__
    if inspect.isfunction(getattr(module, name)) and get_type_hints(getattr(module, name))["return"] is Dataset
}
OBJECTIVES: dict[str, Any] = {
    name: value for name, value in vars(objectives).items() if name in objectives.__all__ and hasattr(value, "estimates_elbo")
}
SOLVERS: dict[str, type[Solver]] = _concrete(optimisers, Solver)
OPTIMISERS: dict[str, Any] = {
    name: optimiser
    for name, optimiser in (_concrete(torch.optim, Optimizer) | _concrete(optimisers, Optimizer)).items()
    if optimiser not in (Optimizer, LBFGS, JointStep)
} | SOLVERS
RULES: dict[str, type[Rule]] = {name: rule for name, rule in _concrete(stopping, Rule).items() if rule is not When}
STARTS: dict[str, type[Start]] = {name: start for name, start in _concrete(starting, Start).items() if not _required(start)}


class UsageError(ValueError):
    """An option that cannot be understood. The message says what was expected and, for a name, suggests the nearest."""


class Expression(NamedTuple):
    """``Name(arguments)`` as it was typed."""

    text: str
    name: str
    args: list[ast.expr]
    kwargs: dict[str, Any]


def only(values: dict[str, Any], option: str) -> Any:
    """The single value of an option that takes one.

    Raises:
        UsageError: if there are several.
    """
    if len(values) != 1:
        raise UsageError(f"{option} takes one value, but {len(values)} are given: {', '.join(values)}.")
    return next(iter(values.values()))


def parse_guide(text: str) -> Callable[[Any], Any]:
    """The guide factory of ``Local(MeanField)``, for --guide."""
    return only(parse_guides(text), "--guide")


def parse_guides(text: str) -> dict[str, Callable[[Any], Any]]:
    """Guide factories, model -> guide, from ``Local(MeanField), AutoNormal``: Python's notation without the model."""
    factories = {}
    for expression in _expressions(text):
        source = _look_up(expression.name, {**SOURCES, **AUTOGUIDES}, "guide")
        parts = [_part(argument) for argument in expression.args]
        _check_call(expression, source, None, *parts)
        factories[expression.text] = _factory(source, parts, expression.kwargs)
    return factories


def parse_objectives(text: str) -> dict[str, Any]:
    """Objectives from ``TraceELBO, StickingTheLanding(8)``."""
    return {e.text: _made(e, _look_up(e.name, OBJECTIVES, "objective")) for e in _expressions(text)}


def parse_optimisers(text: str) -> dict[str, Any]:
    """Optimisers for `fit` from ``Adam, SGD(momentum=0.9), FixedDraws``."""
    made = {}
    for expression in _expressions(text):
        kind = _look_up(expression.name, OPTIMISERS, "optimiser")
        if expression.args:
            raise UsageError(f"{expression.text}: give options by name, as in SGD(momentum=0.9).")
        if expression.name in SOLVERS:
            made[expression.text] = _made(expression, kind)
        else:
            _check_call(expression, kind, [])
            made[expression.text] = partial(kind, **expression.kwargs)
    return made


def parse_rules(text: str) -> list[Rule]:
    """Stopping rules from ``Converged(tolerance=0.1), MaxSeconds(60)``."""
    return [_made(e, _look_up(e.name, RULES, "rule")) for e in _expressions(text)]


def parse_start(text: str) -> Start:
    """Initial values from ``FromPrior``."""
    (expression,) = _expressions(text, limit=1)
    return _made(expression, _look_up(expression.name, STARTS, "start"))


def problem(model: str, data: str | None) -> tuple[str, Model, Tensor]:
    """The title, model and x of ``ProbabilisticPCA(factors=4)`` on ``digits(binarised=True)``, in float64.

    Without `data`, x is the model's demonstration data.
    """
    (wanted,) = _expressions(model, limit=1)
    for expression in (wanted, *(_expressions(data, limit=1) if data is not None else ())):
        if expression.args:
            raise UsageError(f"{expression.text}: give options by name, as in ProbabilisticPCA(factors=4).")
    kind = _look_up(wanted.name, MODELS, "model")
    if data is None:
        if wanted.kwargs:
            raise UsageError(f"{wanted.text}: the demonstration takes no options; give --data too, or write {wanted.name}.")
        instance, x = kind.demo()
        return wanted.text, instance.double(), x.double()
    (source,) = _expressions(data, limit=1)
    load = _look_up(source.name, DATASETS, "data set")
    _check_call(source, load)
    loaded = load(**source.kwargs)
    y = None if loaded.y is None else loaded.y.double()
    _check_call(wanted, kind.from_dataset, loaded)
    instance, x = kind.from_dataset(loaded._replace(x=loaded.x.double(), y=y), **wanted.kwargs)
    return f"{wanted.text} on {source.text}", instance, x


def _expressions(text: str, *, limit: int | None = None) -> list[Expression]:
    try:
        body = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise UsageError(f"cannot read {text!r}: write Name, or Name(options), as in Local(MeanField).") from None
    nodes = body.elts if isinstance(body, ast.Tuple) else [body]
    if not nodes:
        raise UsageError(f"{text!r} holds no name: write Name, or Name(options), as in Local(MeanField).")
    if limit is not None and len(nodes) > limit:
        raise UsageError(f"expected one name, but {text!r} has {len(nodes)}.")
    return [_expression(node) for node in nodes]


def _expression(node: ast.expr) -> Expression:
    text = ast.unparse(node)
    if isinstance(node, ast.Name):
        return Expression(text, node.id, [], {})
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        if any(keyword.arg is None for keyword in node.keywords) or any(isinstance(a, ast.Starred) for a in node.args):
            raise UsageError(f"cannot read {text!r}: write each option out, as in Name(option=1), without * and **.")
        kwargs = {keyword.arg: _literal(keyword.value) for keyword in node.keywords if keyword.arg}
        return Expression(text, node.func.id, node.args, kwargs)
    raise UsageError(f"cannot read {text!r}: write Name, or Name(options), as in Local(MeanField).")


def _part(node: ast.expr) -> Any:
    """A family or an encoder, such as ``LowRank(2)`` or ``MeanField``."""
    expression = _expression(node)
    kind = _look_up(expression.name, {**FAMILIES, **ENCODERS}, "family or encoder")
    return _made(expression, kind)


def _made(expression: Expression, kind: Any) -> Any:
    literals = [_literal(argument) for argument in expression.args]
    _check_call(expression, kind, *literals)
    with naming(expression.text, kind, ()):
        return kind(*literals, **expression.kwargs)


def _literal(node: ast.expr) -> Any:
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
        raise UsageError(f"{ast.unparse(node)!r} is not a number, string or tuple.") from None


def _look_up(name: str, known: Mapping[str, Any], what: str) -> Any:
    if name in known:
        return known[name]
    folded = {candidate.lower(): candidate for candidate in known}
    nearest = get_close_matches(name.lower(), folded, n=1, cutoff=0.4)
    hint = f"did you mean {folded[nearest[0]]}?" if nearest else f"there are {', '.join(known)}."
    raise UsageError(f"there is no {what} {name!r}; {hint}")


def _check_call(expression: Expression, function: Callable[..., Any], *args: Any) -> None:
    try:
        inspect.signature(function).bind(*args, **expression.kwargs)
    except TypeError as error:
        takes = ", ".join(map(str, (p.replace(annotation=p.empty) for p in inspect.signature(function).parameters.values())))
        raise UsageError(f"{expression.text}: {error}; the signature is {expression.name}({takes}).") from None


def _factory(source: Callable[..., Any], parts: list[Any], kwargs: dict[str, Any]) -> Callable[[Any], Any]:
    def make(model: Any) -> Any:
        with naming("guide", source, (*parts, *kwargs.values())):
            return source(model, *parts, **kwargs)

    return make
