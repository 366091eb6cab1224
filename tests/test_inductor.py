"""The rewriting of Inductor's C++, the operations that replace torch's in loops, and what the installed torch takes."""

from __future__ import annotations

import math
import tomllib
from pathlib import Path

import pytest
import torch
from packaging.requirements import Requirement
from problems import build as build_guide
from problems import demo
from torch._inductor.decomposition import select_decomp_table
from torch._inductor.exc import InductorError
from torch.fx.experimental.proxy_tensor import make_fx

from guides import FullRank, Global, Local, MeanField
from inference import fit
from inference.engine import CompiledLoop
from inference.engine.errors import BuildError
from inference.engine.inductor import build as building
from inference.engine.inductor.build import MAX_SUMMED, REPLACEMENTS, _product, _tanh, build, wrapper_changed
from inference.engine.inductor.hoist_allocations import MAX_HOISTED_BYTES, hoisted
from inference.engine.strategy import Strategy
from models import LinearRegression, LocalGaussian

HEAD = """\
    AtenTensorHandle buf1_handle;
    AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_assign_tensors_out(input_0, &buf1_handle));
    RAIIAtenTensorHandle buf1(buf1_handle);
"""
TAIL = "    input_0.reset();\n"


def argument(name: str, source: str) -> str:
    return (
        f"        AtenTensorHandle {name}_handle;\n"
        f"        AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_assign_tensors_out({source}, &{name}_handle));\n"
        f"        RAIIAtenTensorHandle {name}({name}_handle);\n"
    )


def allocation(name: str, size: int) -> str:
    return (
        f"        static constexpr int64_t size_{name}[] = {{{size}L, }};\n"
        f"        AtenTensorHandle {name}_handle;\n"
        f"        AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(1, size_{name}, size_{name}, "
        f"cached_torch_dtype_float32, cached_torch_device_type_cpu, this->device_idx_, &{name}_handle));\n"
        f"        RAIIAtenTensorHandle {name}({name}_handle);\n"
    )


def view(name: str, source: str, offset: int = 0) -> str:
    wrapped = f"wrap_with_raii_handle_if_needed(reinterpret_tensor_wrapper({source}, 1, size, size, {offset}L))"
    return f"        auto {name} = {wrapped};  // alias\n"


def program(body: str) -> str:
    return (
        f"{HEAD}    while (1) {{\n        // subgraph: goes_on\n"
        + argument("goes_on_arg0_1", "buf1")
        + argument("goes_on_arg1_1", "input_1")
        + "        cpp_fused_0((const int64_t*)(goes_on_arg0_1.data_ptr()), (const int64_t*)(goes_on_arg1_1.data_ptr()));\n"
        + "        if (!buf0_cond_result_scalar) break;\n        // subgraph: body\n"
        + argument("body_arg0_1", "buf1")
        + argument("body_arg1_1", "input_1")
        + body
        + "        body_arg0_1.reset();\n"
        + f"        buf1.reset();\n        buf1 = std::move(made);\n    }}\n{TAIL}"
    )


def divided(body: str) -> tuple[str, str]:
    """The lines before the loop, and the loop, of the rewritten program."""
    code = hoisted(program(body))
    assert code.startswith(HEAD)
    assert code.endswith(TAIL)
    before, loop = code[len(HEAD) : -len(TAIL)].split("    while (1) {\n")
    return before, loop


class TestTheWrapper:
    def test_allocates_once(self):
        body = allocation("made", 4) + allocation("other", 4)
        before, loop = divided(body + "        cpp_fused_1((float*)(made.data_ptr()), (float*)(other.data_ptr()));\n")
        assert before.count("empty_strided") == 2
        assert "empty_strided" not in loop
        assert "assign_tensors_out" not in loop
        assert "cpp_fused_1((float*)(made_p), (float*)(other_p));" in loop

    def test_swaps_a_step_s_input_with_its_result(self):
        _, loop = divided(allocation("made", 4))
        assert "std::swap(buf1, made);" in loop
        assert "auto* const made_p = made.data_ptr();" in loop
        assert "buf1.reset();" not in loop

    def test_goes_on_below_the_count(self):
        before, loop = divided(allocation("made", 4))
        assert "if (*(const int64_t*)(buf1_p) >= *(const int64_t*)(input_1_p)) break;" in loop
        assert "input_1_p = input_1.data_ptr();" in before

    def test_finds_the_addresses_of_views_of_swapped_tensors(self):
        use = "        cpp_fused_1((float*)(part.data_ptr()));\n"
        _, loop = divided(allocation("made", 4) + view("part", "made", 3) + use)
        assert "part_p = static_cast<char*>(made_p) + 12;" in loop
        assert "cpp_fused_1((float*)(part_p));" in loop

    def test_makes_a_handle_in_each_step_for_a_view_of_a_swapped_tensor_that_a_call_needs(self):
        use = "        AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_cpu_mm_out(part, part, part));\n"
        _, loop = divided(allocation("made", 4) + view("part", "made", 3) + use)
        assert view("part", "made", 3).split(";")[0] in loop

    def test_allocates_large_temporaries_in_each_step(self):
        limit = MAX_HOISTED_BYTES // 4
        before, loop = divided(allocation("made", 4) + allocation("small", limit) + allocation("large", limit + 1))
        assert "&small_handle" in before
        assert "&large_handle" in loop

    def test_leaves_a_view_that_is_handed_on(self):
        """If its memory were allocated once, the next step would overwrite its own input."""
        before, loop = divided(allocation("source", 4) + view("made", "source"))
        assert "empty_strided" in loop
        assert "buf1 = std::move(made);" in loop
        assert "empty_strided" not in before

    def test_is_unchanged_if_it_is_not_as_expected(self):
        for code in ("int main() {}\n", program("").replace("goes_on", "other"), 2 * program("")):
            assert hoisted(code) == code


class TestTanh:
    def test_is_right_to_six_units_in_the_last_place(self):
        ends = torch.tensor([math.inf, -math.inf])
        x = torch.cat([torch.linspace(-12, 12, 100_001), torch.logspace(-20, 0, 10_001), ends])
        expected = x.double().tanh()
        found = _tanh(x)
        assert found.abs().max() <= 1
        nonzero = expected != 0
        assert (found.double() / expected - 1)[nonzero].abs().max() < 6 * 2**-24
        assert (found[~nonzero] == 0).all()

    def test_of_nan_is_nan(self):
        assert _tanh(torch.tensor(math.nan)).isnan()

    def test_is_the_library_s_in_double_precision(self):
        assert _tanh(torch.zeros(1, dtype=torch.float64)) is NotImplemented


class TestProducts:
    @pytest.mark.parametrize("shapes", [((5, 1), (1, 7)), ((5, 3), (3, 1)), ((1, 5, 3), (1, 3, 1)), ((2, 5, 1), (2, 1, 4))])
    def test_small_ones_are_sums(self, shapes):
        a, b = (torch.randn(shape, dtype=torch.float64) for shape in shapes)
        torch.testing.assert_close(_product(a, b), a @ b, rtol=1e-12, atol=1e-12)

    def test_larger_ones_are_the_library_s(self):
        assert _product(torch.ones(5, 3), torch.ones(3, 2)) is NotImplemented
        assert _product(torch.ones(MAX_SUMMED, 2), torch.ones(2, 1)) is NotImplemented


def test_a_rewritten_wrapper_that_the_compiler_refuses_is_compiled_as_inductor_wrote_it(monkeypatch, tmp_path):
    from torch._inductor.exc import CppCompileError

    tried = []

    def refuses(loop, inputs, folder, *, threads):
        tried.append(folder)
        if len(tried) == 1:
            raise CppCompileError(["g++"], "error")

    monkeypatch.setattr(building, "_build", refuses)
    build(None, [], tmp_path, threads=1)
    assert len(tried) == 2

    def fails(loop, inputs, folder, *, threads):
        raise RuntimeError("no compiler")

    monkeypatch.setattr(building, "_build", fails)
    with pytest.raises(BuildError, match="no compiler"):
        build(None, [], tmp_path, threads=1)


class StoppedError(Exception):
    """Raised in place of calling the C++ compiler."""


def wrapper_of(model_class, source, family, tmp_path):
    """The C++ that the installed Inductor writes for the loop of a fit."""
    loops, codes = [], []

    class Recorded(Strategy):
        def prepared(self, loop, example):
            loops.append((loop, example))
            return loop

    def stop(code):
        codes.append(code)
        raise StoppedError

    model, x = demo(model_class)
    fit(model, build_guide(model, source, family, x), x, steps=3, engine=type("_", (CompiledLoop,), {"strategy": Recorded}))
    ((loop, example),) = loops
    with wrapper_changed(stop), pytest.raises(InductorError, match="StoppedError"):
        building._build(loop.body, example, tmp_path, threads=1)
    return codes[0]


HOW = f"torch {torch.__version__} no longer takes this rewrite; see docs/engine.md, 'Raising the bound on torch'"


@pytest.mark.filterwarnings("ignore")  # torch warns of its own operations, and a build ignores it
class TestInstalledTorch:
    """Loops compiled by another torch may be slow without a sign of it: here the rewrites that it no longer takes fail."""

    def test_is_within_the_bound(self):
        project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
        (bound,) = (r for r in map(Requirement, project["dependencies"]) if r.name == "torch")
        assert any(part.operator == "<" for part in bound.specifier)
        assert bound.specifier.contains(torch.__version__.split("+")[0]), HOW

    @pytest.mark.parametrize(
        "pair", [(LocalGaussian, Local, MeanField), (LinearRegression, Global, FullRank)], ids=["vectors", "matrices"]
    )
    def test_writes_a_wrapper_whose_allocations_can_be_hoisted(self, pair, tmp_path):
        code = wrapper_of(*pair, tmp_path)
        loop = code.split("    while (1) {\n")[1].split("\n    }\n")[0]
        assert "empty_strided" in loop
        rewritten = hoisted(code)
        assert rewritten != code, HOW
        loop = rewritten.split("    while (1) {\n")[1].split("\n    }\n")[0]
        assert "empty_strided" not in loop, HOW
        assert "assign_tensors_out" not in loop, HOW

    @pytest.mark.parametrize(
        ("replaced", "step"),
        [
            (torch.ops.aten.linalg_solve_triangular.default, lambda a: torch.linalg.solve_triangular(a, a, upper=True)),
            (torch.ops.aten.mm.default, lambda a: a @ a[:, :1]),
            (torch.ops.aten.bmm.default, lambda a: a[None] @ a[None, :, :1]),
            (torch.ops.aten.mv.default, lambda a: a @ a[0]),
            (torch.ops.aten.tanh.default, torch.tanh),
            (torch.ops.aten.normal_functional.default, torch.ops.aten.normal_functional),
        ],
        ids=lambda value: str(value) if isinstance(value, torch._ops.OpOverload) else "",
    )
    def test_takes_the_operations_that_replace_its_own(self, replaced, step):
        a = torch.ones(3, 3)
        assert replaced in {node.target for node in make_fx(step)(a).graph.nodes}, HOW
        table = {**select_decomp_table(), **REPLACEMENTS}
        assert replaced not in {node.target for node in make_fx(step, decomposition_table=table)(a).graph.nodes}, HOW

    def test_has_every_replacement_tested(self):
        (mark,) = (
            m for m in TestInstalledTorch.test_takes_the_operations_that_replace_its_own.pytestmark if m.name == "parametrize"
        )
        assert {replaced for replaced, _ in mark.args[1]} == REPLACEMENTS.keys()
