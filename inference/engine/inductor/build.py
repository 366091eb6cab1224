"""A loop, compiled ahead of time by torch's Inductor into a library that any later process can load."""

from __future__ import annotations

import operator
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
from .hoist_allocations import lean

__all__ = ["Compiled", "build", "load"]

SMALL = 1024
"""Numbers of a matrix whose product with a vector is no call of a library."""

Compiled = Callable[[list[Tensor]], list[Tensor]]
"""Runs a loop: takes the inputs of its body, with i = 0, and returns what it carries after `count` steps. It overwrites the
inputs that it carries."""


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
    from torch._inductor.exc import CppCompileError

    depth = sys.getrecursionlimit()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                with _wrapper_by(lean):
                    _build(loop, inputs, folder, threads=threads)
            except CppCompileError:
                # As Inductor writes it, and slower.
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
        # A buffer that is used for one thing only can be taken before the loop.
        "allow_buffer_reuse": False,
        "inplace_buffers": False,
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


@contextmanager
def _wrapper_by(change: Callable[[str], str]) -> Iterator[None]:
    """Inductor hands its wrapper to the compiler by way of `change`."""
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
    """A product of matrices that is less work than a call of the library, as sums that are fused with what is around them."""
    if a.shape[-1] == 1:
        return a * b
    if b.shape[-1] == 1 and a.numel() <= SMALL:
        return (a * b.mT).sum(-1, keepdim=True)
    return NotImplemented


def _mv(a: Tensor, b: Tensor) -> Tensor:
    """Inductor would sum along rows or columns, which for many numbers is slower than the library."""
    product: Tensor = torch.ops.aten.mm.default(a, b[:, None])[:, 0]
    return product


def _tanh(x: Tensor) -> Tensor:
    """In single precision, a ratio of polynomials, least squares for tanh(x)/x in x², to six units of the last place: the
    library's, to one unit, takes as long as the products of matrices around it."""
    if x.dtype != torch.float32:
        return NotImplemented
    y = x.clamp(-9.02, 9.02)
    square = y * y
    above = ((1.33188061e-08 * square + 2.05833455e-05) * square + 3.49402936e-03) * square + 1.33797148e-01
    below = ((7.76192622e-07 * square + 3.28308206e-04) * square + 2.58710571e-02) * square + 4.67130300e-01
    return (y * (above * square + 1.0) / (below * square + 1.0)).clamp(-1.0, 1.0)


_EQUAL: dict[Any, Callable[..., Any]] = {
    # The one that compiled code can call without an interpreter.
    torch.ops.aten.linalg_solve_triangular.default: _triangular_solution,
    torch.ops.aten.mm.default: _product,
    torch.ops.aten.bmm.default: _product,
    torch.ops.aten.mv.default: _mv,
    torch.ops.aten.tanh.default: _tanh,
    # The same numbers, without another tensor to fill.
    torch.ops.aten.normal_functional.default: _normal,
}
