"""One step of a fit as a graph of tensor operations, with nothing of Pyro left."""

from __future__ import annotations

import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx

from .optimiser_step import PlainOptimiserError
from .simplify import simplify

__all__ = ["CaptureError", "capture"]


class CaptureError(RuntimeError):
    """The program cannot be captured; the message says why and where."""


def capture(
    loss_and_gradients: Callable[[], Sequence[Tensor | None]], leaves: Sequence[Tensor], args: Sequence[Tensor]
) -> fx.GraphModule:
    """Runs `loss_and_gradients` once and returns the graph of what it computed from `leaves` and `args`.

    Every tensor that it reads besides these becomes a constant of the graph. Random operations stay in the graph, in their
    order, so that it draws from the global generator what the program would.

    Args:
        loss_and_gradients: a function of no arguments that uses the very tensors in `leaves` and `args`, and returns
            tensors or None.
        leaves, args: its inputs.

    Returns:
        A function of (leaves, args) that returns the same list for other values of the same shapes and dtypes.

    Raises:
        PlainOptimiserError: from the function itself.
        CaptureError: if Python's control flow depends on a tensor's value, or a buffer is changed in place.
    """
    try:
        with warnings.catch_warnings(), _without_stack_traces():
            warnings.simplefilter("ignore")
            traced = make_fx(lambda *_: loss_and_gradients())(list(leaves), list(args))
            _refuse_changed_constants(traced)
            example = ([leaf.detach() for leaf in leaves], list(args))
            pure = make_fx(torch.func.functionalize(traced, remove="mutations"))(*example)
    except (CaptureError, PlainOptimiserError):
        raise
    except Exception as error:
        frame = traceback.extract_tb(error.__traceback__)
        where = next((f for f in reversed(frame) if "site-packages" not in f.filename and __file__ != f.filename), frame[-1])
        reason = str(error).strip().splitlines()[0]
        raise CaptureError(f"{where.filename}:{where.lineno} ({where.line}): {reason}") from error
    return simplify(pure)


def _refuse_changed_constants(traced: fx.GraphModule) -> None:
    for node in traced.graph.nodes:
        schema = getattr(node.target, "_schema", None)
        if "batch_norm" in str(node.target) and any(n.op == "get_attr" for n in node.args[3:5] if isinstance(n, fx.Node)):
            # Its running moments change, though its schema does not say so.
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
    """To record where each operation was called would take as long as all the rest."""
    before = fx.config.do_not_emit_stack_traces
    fx.config.do_not_emit_stack_traces = True
    try:
        yield
    finally:
        fx.config.do_not_emit_stack_traces = before
