"""A fingerprint of a posterior: of everything that the draws of a sampler depend on."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx

from ..programs.log_joint import LogJoint
from ..programs.quantities import quantities

__all__ = ["NoFingerprintError", "fingerprint"]

SPREADS = (0.1, 1.0, 3.0)
"""Spreads of the points, in unconstrained space, at which the program is compared with its graph."""


class NoFingerprintError(ValueError):
    """No graph stands for the program. The message is the reason, as the end of a sentence."""


def fingerprint(joint: LogJoint) -> str:
    """A hash of the operations of log p(x, h), of its gradient and of the quantities, with the bytes of all their constants.

    The program is run once, and its tensor operations are recorded. So it does not matter where a number comes from: a
    closure, a global, a default, an attribute, a file or the data. Two programs with one fingerprint compute the same numbers.

    Raises:
        NoFingerprintError: if the program is not a fixed sequence of operations: it branches on the values of the latents,
            leaves torch, draws random numbers, or differs from call to call.
    """
    function = _everything(joint)
    generator = torch.Generator().manual_seed(0)
    points = [spread * torch.randn(joint.dim, generator=generator).to(joint.latents.dtype) for spread in SPREADS]
    try:
        with joint.evaluated():
            names = list(_quantities(joint, points[0]))
            graph, again = (make_fx(function)(points[0]) for _ in range(2))
            _refuse_random(graph)
            digest = _digest(graph)
            _refuse_changing(same=digest == _digest(again) and all(_same(function(at), graph(at)) for at in points))
    except NoFingerprintError:
        raise
    except Exception as error:
        reason = str(error).strip().splitlines()
        raise NoFingerprintError(
            f"its operations cannot be recorded ({reason[0] if reason else type(error).__name__})"
        ) from error
    sites = [(site.name, tuple(site.batch_shape), tuple(site.event_shape)) for site in joint.latents.sites]
    return hashlib.sha256(repr((sites, names, digest)).encode()).hexdigest()


def _everything(joint: LogJoint) -> Callable[[Tensor], Any]:
    """The function whose values a run is made of."""
    both = torch.func.grad_and_value(joint.at)

    def function(u: Tensor) -> list[Any]:
        found = _quantities(joint, u)
        return [*both(u), *found.values()]

    return function


def _quantities(joint: LogJoint, u: Tensor) -> dict[str, Tensor]:
    """The quantities at one u, as a single draw."""
    return quantities(joint.model, {name: value.unsqueeze(0) for name, value in joint.latents.constrain(u)[0].items()})


def _refuse_random(graph: fx.GraphModule) -> None:
    for node in graph.graph.nodes:
        if torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()):
            raise NoFingerprintError(f"it draws random numbers ({node.target})")


def _refuse_changing(*, same: bool) -> None:
    if not same:
        raise NoFingerprintError("it differs from call to call, or computes outside torch")


def _same(found: list[Any], recorded: list[Any]) -> bool:
    try:
        torch.testing.assert_close(found, recorded, equal_nan=True)
    except AssertionError:
        return False
    return True


def _digest(graph: fx.GraphModule) -> str:
    digest = hashlib.sha256()
    for part in _parts(graph):
        digest.update(part)
        digest.update(b"\0")
    return digest.hexdigest()


def _parts(graph: fx.GraphModule) -> Iterator[bytes]:
    """The nodes of a graph, each as text, and the bytes of its constants."""
    names = {node: f"%{position}" for position, node in enumerate(graph.graph.nodes)}
    for node in graph.graph.nodes:
        if node.op == "get_attr":
            value = getattr(graph, node.target)
            if isinstance(value, fx.GraphModule):
                yield from _parts(value)
                continue
            yield f"{value.dtype} {tuple(value.shape)}".encode()
            yield value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
            continue
        arguments = fx.node.map_arg((node.args, node.kwargs), lambda other: _Name(names[other]))
        yield f"{names[node]} {node.op} {node.target} {arguments!r}".encode()


class _Name(str):
    """The name of another node; its repr has no quotes, so that no text equals it."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)
