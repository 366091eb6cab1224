"""A loop, compiled ahead of time by torch's Inductor into a library that any later process can load."""

from __future__ import annotations

import operator
import sys
import tempfile
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx

from .loop import Loop

__all__ = ["BuildError", "build", "load"]

Compiled = Callable[[list[Tensor]], list[Tensor]]
"""Runs a loop: takes the inputs of its body, with i = 0, and returns what it carries after `count` steps."""


class BuildError(RuntimeError):
    """The loop could not be compiled; the message says why."""


def build(loop: Loop, inputs: Sequence[Tensor], folder: Path, *, threads: int) -> None:
    """Compiles `loop` into `folder`, as ``loop.so`` and what it needs.

    Random operations are calls of torch's own, in their order, so that the library draws from the global generator what the
    programs would.

    Args:
        loop: what to compile.
        inputs: an example of its inputs.
        folder: exists and is empty.
        threads: for loops over many numbers.

    Raises:
        BuildError: if there is no C++ compiler, or it fails.
    """
    depth = sys.getrecursionlimit()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            _build(loop, inputs, folder, threads=threads)
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise BuildError(f"the step could not be compiled ({type(error).__name__}: {reason})") from error
    finally:
        sys.setrecursionlimit(depth)


def load(folder: Path) -> Compiled:
    """The library that `build` has made."""
    with warnings.catch_warnings():
        # torch says once in a process that this operation is deprecated; it is the one with a C interface.
        warnings.simplefilter("ignore")
        torch.triangular_solve(torch.ones(1, 1), torch.ones(1, 1))
    runner = torch._C._aoti.AOTIModelContainerRunnerCpu(str(folder / "loop.so"), 1)
    run: Compiled = runner.run
    return run


def _build(loop: Loop, inputs: Sequence[Tensor], folder: Path, *, threads: int) -> None:
    from torch._guards import TracingContext, tracing
    from torch._higher_order_ops.while_loop import while_loop_op
    from torch._inductor import config
    from torch._inductor.compile_fx import _recursive_joint_graph_passes, compile_fx_inner
    from torch._inductor.decomposition import select_decomp_table
    from torch._inductor.virtualized import V
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

    carried = 2 + len(loop.packing.groups)
    settings = {
        "cpp_wrapper": True,
        "fallback_random": True,
        "cpp.threads": threads,
        "aot_inductor.allow_stack_allocation": True,
        # Planning the reuse of buffers across the loop's border fails in torch 2.13 when arrays lie on the stack.
        "allow_buffer_reuse": False,
        "aot_inductor.enable_frame_pointer": False,
        "aot_inductor.enable_line_tables": False,
    }
    with (
        tempfile.TemporaryDirectory() as work,
        torch.no_grad(),
        config.patch({**settings, "aot_inductor.output_path": work}),
    ):
        mode = FakeTensorMode(shape_env=ShapeEnv())
        fakes = [mode.from_tensor(value, static_shapes=True) for value in inputs]
        root = torch.nn.Module()
        with mode:
            root.body = make_fx(loop.body, decomposition_table={**select_decomp_table(), **_EQUAL})(*fakes)
            root.goes_on = make_fx(lambda *values: (values[0] < values[carried],))(*fakes)
        graph = fx.Graph()
        nodes = [graph.placeholder(f"input_{k}") for k in range(len(inputs))]
        for node, fake in zip(nodes, fakes, strict=True):
            node.meta["val"] = fake
        condition, body = graph.get_attr("goes_on"), graph.get_attr("body")
        whole = graph.call_function(while_loop_op, (condition, body, tuple(nodes[:carried]), tuple(nodes[carried:])))
        whole.meta["val"] = tuple(fakes[:carried])
        results = []
        for k in range(carried):
            results.append(graph.call_function(operator.getitem, (whole, k)))
            results[-1].meta["val"] = fakes[k]
        graph.output(tuple(results)).meta["user_visible_output_idxs"] = []
        with V.set_fake_mode(mode), V.set_aot_compilation(True), tracing(TracingContext(mode)):
            module = _recursive_joint_graph_passes(fx.GraphModule(root, graph), input_device=torch.device("cpu"))
            made: Any = compile_fx_inner(module, fakes, static_input_idxs=[], is_inference=True, cpp_wrapper=True)
        library = Path(made.filename)
        library.rename(folder / "loop.so")
        calls = library.with_suffix(".json")
        if calls.exists():
            calls.rename(folder / "loop.json")


def _triangular_solution(a: Tensor, b: Tensor, *, upper: bool, left: bool = True, unitriangular: bool = False) -> Tensor:
    if not left:
        return _triangular_solution(a.mT, b.mT, upper=not upper, unitriangular=unitriangular).mT
    return torch.ops.aten.triangular_solve.default(b, a, upper, False, unitriangular)[0]


def _normal(like: Tensor, mean: float = 0.0, std: float = 1.0, generator: None = None) -> Tensor:
    if (mean, std, generator) != (0.0, 1.0, None):
        return NotImplemented
    drawn: Tensor = torch.ops.aten.randn.default(like.shape, dtype=like.dtype, device=like.device)
    return drawn


_EQUAL: dict[Any, Callable[..., Any]] = {
    # The one that compiled code can call without an interpreter.
    torch.ops.aten.linalg_solve_triangular.default: _triangular_solution,
    # The same numbers, without another tensor to fill.
    torch.ops.aten.normal_functional.default: _normal,
}
