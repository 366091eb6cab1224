"""Pyro programs bound to fitted parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pyro.params.param_store import StateDict
from torch import nn

from .isolation import param_store

__all__ = ["BoundProgram", "bind", "unwrap"]


class BoundProgram:
    """A Pyro program with its own param-store values. A fit returns one for a plain function.

    Args:
        program: the model or guide.
        params: the state of the param store with its values.
    """

    def __init__(self, program: Callable[..., Any], params: StateDict) -> None:
        self.program = program
        self.params = params

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with param_store(self.params):
            return self.program(*args, **kwargs)


def bind(program: Callable[..., Any], params: StateDict, names: set[str]) -> Callable[..., Any]:
    """Binds `program` to the values of its parameters `names`. A module that holds all of them is returned as it is.

    If the program is already bound, its values are copied into `params`.
    """
    if isinstance(program, BoundProgram):
        params["params"].update(program.params["params"])
        return program
    own = {id(p) for p in program.parameters()} if isinstance(program, nn.Module) else set()
    if all(id(params["params"][name]) in own for name in names):
        return program
    return BoundProgram(program, params)


def unwrap(program: Callable[..., Any]) -> Callable[..., Any]:
    """The program inside a `BoundProgram`; any other program as it is."""
    return program.program if isinstance(program, BoundProgram) else program
