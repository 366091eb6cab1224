"""Captures one step of a fit as a graph of tensor operations, without Pyro."""

from __future__ import annotations

import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx

from ..errors import CaptureError, LoopError
from .simplify import simplify
from .sources import sources_forgotten
from .value_sizes import sized_by_values

__all__ = ["capture"]


def capture(
    loss_and_gradients: Callable[[], Sequence[Tensor | None]],
    leaves: Sequence[Tensor],
    args: Sequence[Tensor],
    *,
    fixed: Sequence[Tensor] = (),
) -> fx.GraphModule:
    """Runs `loss_and_gradients` once and returns the graph of its operations on `leaves` and `args`.

    Every other tensor that it reads becomes a constant of the graph. Random operations stay in the graph, in their order, so
    that the graph draws from the global generator what the program would.

    Args:
        loss_and_gradients: a function without arguments that reads the tensor objects in `leaves` and `args`, and returns
            tensors or None.
        leaves, args: the inputs of the graph.
        fixed: those of `args` that have the same values at each step.

    Returns:
        A function of (leaves, args) that returns the same list for other values of the same shapes and dtypes.

    Raises:
        LoopError: from the function itself.
        CaptureError: if Python's control flow or a tensor's size depends on a tensor's value, a buffer is changed in place, or
            a generator of the program's own is drawn from.
    """
    try:
        with warnings.catch_warnings(), _without_stack_traces(), sources_forgotten():
            warnings.simplefilter("ignore")
            traced = make_fx(lambda *_: loss_and_gradients())(list(leaves), list(args))
            _refuse_own_state(traced)
            example = ([leaf.detach() for leaf in leaves], list(args))
            pure = make_fx(torch.func.functionalize(traced, remove="mutations"))(*example)
    except (CaptureError, LoopError):
        raise
    except Exception as error:
        frame = traceback.extract_tb(error.__traceback__)
        where = next((f for f in reversed(frame) if "site-packages" not in f.filename and __file__ != f.filename), frame[-1])
        reason = str(error).strip().splitlines()[0]
        raise CaptureError(f"{where.filename}:{where.lineno} ({where.line}): {reason}") from error
    unchanging = {len(leaves) + k for k, value in enumerate(args) if any(value is one for one in fixed)}
    if (node := sized_by_values(pure.graph, unchanging)) is not None:
        raise CaptureError(f"the size of a tensor depends on values, by {node.target} (a boolean mask or the like)")
    with sources_forgotten():
        return simplify(pure)


def _refuse_own_state(traced: fx.GraphModule) -> None:
    for node in traced.graph.nodes:
        read = getattr(traced, str(node.target), None) if node.op == "get_attr" else None
        if any(isinstance(value, torch.Generator) for value in (read, *node.args, *node.kwargs.values())):
            raise CaptureError("it draws from a generator of the program's own")
        schema = getattr(node.target, "_schema", None)
        if "batch_norm" in str(node.target) and any(n.op == "get_attr" for n in node.args[3:5] if isinstance(n, fx.Node)):
            # It changes its running moments, although its schema does not say so.
            raise CaptureError(f"buffers of the model or guide may be changed in place by {node.target}")
        if schema is not None and schema.is_mutable:
            changed = node.args[0]
            while isinstance(changed, fx.Node) and changed.op == "call_function" and changed.args:
                if getattr(changed.target, "is_view", False):
                    changed = changed.args[0]
                else:
                    break
            if isinstance(changed, fx.Node) and changed.op == "get_attr" and node.target.__name__ != "normal_.default":
                raise CaptureError(f"a buffer of the model or guide is changed in place by {node.target}")


@contextmanager
def _without_stack_traces() -> Iterator[None]:
    """Recording where each operation was called would double the time of a capture."""
    before = fx.config.do_not_emit_stack_traces
    fx.config.do_not_emit_stack_traces = True
    try:
        yield
    finally:
        fx.config.do_not_emit_stack_traces = before
