"""Compiles a loop ahead of time by torch's Inductor into a library that any later process can load."""

from __future__ import annotations

import logging
import operator
import shutil
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx

from ..errors import BuildError
from ..graphs.loop_body import Loop
from .hoist_allocations import hoisted

__all__ = ["build", "load", "wrapper_changed"]

MAX_SUMMED = 1024
"""Numbers in a matrix whose product with a vector is computed as sums instead of by a library call."""

RunLoop = Callable[[list[Tensor]], list[Tensor]]
"""A loop that can be run: takes the inputs of its body, with i = 0, and returns the carried tensors after `count` steps. It
overwrites the carried inputs."""


def build(loop: Loop, inputs: Sequence[Tensor], folder: Path, *, threads: int) -> None:
    """Compiles `loop` into `folder`, as ``loop.so`` and its metadata.

    Random operations remain calls of torch's own, in their order, so that the library draws from the global generator what
    the programs would.

    Args:
        loop: the loop to compile.
        inputs: an example of its inputs.
        folder: an empty folder.
        threads: number of threads for operations on many numbers.

    Raises:
        BuildError: if there is no C++ compiler, or it fails.
    """
    from torch._inductor.exc import CppCompileError

    depth = sys.getrecursionlimit()
    try:
        with warnings.catch_warnings(), _without_logs():
            warnings.simplefilter("ignore")
            try:
                with wrapper_changed(hoisted):
                    _build(loop, inputs, folder, threads=threads)
            except CppCompileError:
                # The compiler refuses the rewritten wrapper: compile it as Inductor wrote it, which is slower.
                _build(loop, inputs, folder, threads=threads)
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise BuildError(f"the step could not be compiled ({type(error).__name__}: {reason})") from error
    finally:
        sys.setrecursionlimit(depth)


def load(folder: Path) -> RunLoop:
    """Loads the library in `folder`."""
    with warnings.catch_warnings():
        # torch warns once in a process that this operation is deprecated. Only it has a C interface.
        warnings.simplefilter("ignore")
        torch.triangular_solve(torch.ones(1, 1), torch.ones(1, 1))
    runner = torch._C._aoti.AOTIModelContainerRunnerCpu(str(folder / "loop.so"), 1)
    run: RunLoop = runner.run
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
        # Only a buffer with a single use can be allocated before the loop.
        "allow_buffer_reuse": False,
        "inplace_buffers": False,
        "aot_inductor.enable_frame_pointer": False,
        "aot_inductor.enable_line_tables": False,
    }
    with (
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as work,
        torch.no_grad(),
        config.patch({**settings, "aot_inductor.output_path": work}),
    ):
        mode = FakeTensorMode(shape_env=ShapeEnv())
        fakes = [mode.from_tensor(value, static_shapes=True) for value in inputs]
        root = torch.nn.Module()
        with mode:
            root.body = make_fx(loop.body, decomposition_table={**select_decomp_table(), **REPLACEMENTS})(*fakes)
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
        # The cache may lie on another file system than temporary files.
        shutil.move(library, folder / "loop.so")
        calls = library.with_suffix(".json")
        if calls.exists():
            shutil.move(calls, folder / "loop.json")


@contextmanager
def _without_logs() -> Iterator[None]:
    """Keeps the compiler's messages off the terminal; its errors are in the exception that it raises."""
    silenced = [handler for name in ("", *logging.root.manager.loggerDict) for handler in logging.getLogger(name).handlers]

    def drop(record: logging.LogRecord) -> bool:
        return not record.name.startswith("torch")

    for handler in silenced:
        handler.addFilter(drop)
    last, logging.lastResort = logging.lastResort, None
    try:
        yield
    finally:
        logging.lastResort = last
        for handler in silenced:
            handler.removeFilter(drop)


@contextmanager
def wrapper_changed(change: Callable[[str], str]) -> Iterator[None]:
    """Passes every C++ wrapper that Inductor writes through `change` before it is compiled."""
    from torch._inductor.codecache import AotCodeCompiler

    before = AotCodeCompiler.compile

    def compile_changed(graph: Any, wrapper_code: str, *args: Any, **options: Any) -> Any:
        return before(graph, change(wrapper_code), *args, **options)

    AotCodeCompiler.compile = compile_changed  # type: ignore[method-assign]
    try:
        yield
    finally:
        AotCodeCompiler.compile = before  # type: ignore[method-assign]


def _triangular_solution(a: Tensor, b: Tensor, *, upper: bool, left: bool = True, unitriangular: bool = False) -> Tensor:
    if not left:
        return _triangular_solution(a.mT, b.mT, upper=not upper, unitriangular=unitriangular).mT
    return torch.ops.aten.triangular_solve.default(b, a, upper, False, unitriangular)[0]


def _normal(like: Tensor, mean: float = 0.0, std: float = 1.0, generator: None = None) -> Tensor:
    if (mean, std, generator) != (0.0, 1.0, None):
        return NotImplemented
    drawn: Tensor = torch.ops.aten.randn.default(like.shape, dtype=like.dtype, device=like.device)
    return drawn


def _product(a: Tensor, b: Tensor) -> Tensor:
    """A small product as a sum of products, which is fused with its neighbours and takes less time than a library call."""
    if a.shape[-1] == 1:
        return a * b
    if b.shape[-1] == 1 and a.numel() <= MAX_SUMMED:
        return (a * b.mT).sum(-1, keepdim=True)
    return NotImplemented


def _mv(a: Tensor, b: Tensor) -> Tensor:
    """Keeps the library call where Inductor would write sums, which are slower for large matrices."""
    product: Tensor = torch.ops.aten.mm.default(a, b[:, None])[:, 0]
    return product


def _tanh(x: Tensor) -> Tensor:
    """tanh in single precision as a ratio of polynomials, the least-squares fit to tanh(x)/x in x².

    Its error is at most six units in the last place. The library's, at most one unit, makes a fit of 12 000 steps of a small
    VAE take a tenth more time.
    """
    if x.dtype != torch.float32:
        return NotImplemented
    y = x.clamp(-9.02, 9.02)
    square = y * y
    above = ((1.33188061e-08 * square + 2.05833455e-05) * square + 3.49402936e-03) * square + 1.33797148e-01
    below = ((7.76192622e-07 * square + 3.28308206e-04) * square + 2.58710571e-02) * square + 4.67130300e-01
    return (y * (above * square + 1.0) / (below * square + 1.0)).clamp(-1.0, 1.0)


REPLACEMENTS: dict[Any, Callable[..., Any]] = {
    # Compiled code can call this one without a Python interpreter.
    torch.ops.aten.linalg_solve_triangular.default: _triangular_solution,
    torch.ops.aten.mm.default: _product,
    torch.ops.aten.bmm.default: _product,
    torch.ops.aten.mv.default: _mv,
    torch.ops.aten.tanh.default: _tanh,
    # The same numbers, without a tensor to overwrite.
    torch.ops.aten.normal_functional.default: _normal,
}
