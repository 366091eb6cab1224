"""What is done once for all steps of a compiled loop, and small algebra in place of calls."""

from __future__ import annotations

import math
import re
from functools import partial

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from inference.engine.graphs.loop_body import Loop, Packing
from inference.engine.inductor import build as building
from inference.engine.inductor.build import SMALL, BuildError, _product, _tanh, build, load
from inference.engine.inductor.hoist_allocations import MOST_BYTES, lean
from inference.engine.inductor.inline_triangular_solve import MOST_PRODUCTS, solved_in_place

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
    """What comes before the loop, and the loop, of the lean program."""
    code = lean(program(body))
    assert code.startswith(HEAD)
    assert code.endswith(TAIL)
    before, loop = code[len(HEAD) : -len(TAIL)].split("    while (1) {\n")
    return before, loop


class TestTheWrapper:
    def test_takes_memory_once(self):
        body = allocation("made", 4) + allocation("other", 4)
        before, loop = divided(body + "        cpp_fused_1((float*)(made.data_ptr()), (float*)(other.data_ptr()));\n")
        assert before.count("empty_strided") == 2
        assert "empty_strided" not in loop
        assert "assign_tensors_out" not in loop
        assert "cpp_fused_1((float*)(made_p), (float*)(other_p));" in loop

    def test_exchanges_what_a_step_is_given_and_what_it_hands_on(self):
        _, loop = divided(allocation("made", 4))
        assert "std::swap(buf1, made);" in loop
        assert "auto* const made_p = made.data_ptr();" in loop
        assert "buf1.reset();" not in loop

    def test_goes_on_below_the_count(self):
        before, loop = divided(allocation("made", 4))
        assert "if (*(const int64_t*)(buf1_p) >= *(const int64_t*)(input_1_p)) break;" in loop
        assert "input_1_p = input_1.data_ptr();" in before

    def test_knows_the_places_of_parts_of_what_is_exchanged(self):
        use = "        cpp_fused_1((float*)(part.data_ptr()));\n"
        _, loop = divided(allocation("made", 4) + view("part", "made", 3) + use)
        assert "part_p = static_cast<char*>(made_p) + 12;" in loop
        assert "cpp_fused_1((float*)(part_p));" in loop

    def test_makes_a_handle_of_such_a_part_anew_where_a_call_needs_one(self):
        use = "        AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_cpu_mm_out(part, part, part));\n"
        _, loop = divided(allocation("made", 4) + view("part", "made", 3) + use)
        assert view("part", "made", 3).split(";")[0] in loop

    def test_takes_large_temporaries_anew(self):
        most = MOST_BYTES // 4
        before, loop = divided(allocation("made", 4) + allocation("small", most) + allocation("large", most + 1))
        assert "&small_handle" in before
        assert "&large_handle" in loop

    def test_leaves_what_is_handed_on_otherwise(self):
        """A view is handed on: were its memory taken once, the next step would write over what it reads."""
        before, loop = divided(allocation("source", 4) + view("made", "source"))
        assert "empty_strided" in loop
        assert "buf1 = std::move(made);" in loop
        assert "empty_strided" not in before

    def test_is_left_alone_if_it_looks_otherwise(self):
        for code in ("int main() {}\n", program("").replace("goes_on", "other"), 2 * program("")):
            assert lean(code) == code


class TestTanh:
    def test_is_right_to_six_units_of_the_last_place(self):
        ends = torch.tensor([math.inf, -math.inf])
        x = torch.cat([torch.linspace(-12, 12, 100_001), torch.logspace(-20, 0, 10_001), ends])
        expected = x.double().tanh()
        found = _tanh(x)
        assert found.abs().max() <= 1
        nonzero = expected != 0
        assert (found.double() / expected - 1)[nonzero].abs().max() < 6 * 2**-24
        assert (found[~nonzero] == 0).all()

    def test_of_no_number_is_none(self):
        assert _tanh(torch.tensor(math.nan)).isnan()

    def test_in_double_precision_is_the_librarys(self):
        assert _tanh(torch.zeros(1, dtype=torch.float64)) is NotImplemented


class TestProducts:
    @pytest.mark.parametrize("shapes", [((5, 1), (1, 7)), ((5, 3), (3, 1)), ((1, 5, 3), (1, 3, 1)), ((2, 5, 1), (2, 1, 4))])
    def test_that_are_little_work_are_sums(self, shapes):
        a, b = (torch.randn(shape, dtype=torch.float64) for shape in shapes)
        torch.testing.assert_close(_product(a, b), a @ b, rtol=1e-12, atol=1e-12)

    def test_that_are_more_are_the_librarys(self):
        assert _product(torch.ones(5, 3), torch.ones(3, 2)) is NotImplemented
        assert _product(torch.ones(SMALL, 2), torch.ones(2, 1)) is NotImplemented


def systems(dtype: torch.dtype) -> list[torch.Tensor]:
    """Solutions by every way to ask for one, laid end to end."""
    found = []
    for batch in ((), (3,)):
        a = torch.randn(*batch, 7, 7, dtype=dtype) + 4 * torch.eye(7, dtype=dtype)
        for columns in (1, 2):
            b = torch.randn(*batch, 7, columns, dtype=dtype)
            found += [
                partial(torch.linalg.solve_triangular, matrix, right, upper=upper, left=left, unitriangular=unit)
                for matrix in (a, a.mT)
                for upper in (False, True)
                for unit in (False, True)
                for left, right in ((True, b), (False, b.mT))
            ]
    return found


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_triangular_systems_are_solved_in_place(dtype, tmp_path, monkeypatch):
    """Every layout, in compiled code that calls no library; the loop allocates nothing."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        solutions = systems(dtype)

    def step(i, losses, state, count, rates):
        # What depends on nothing that the loop carries would be worked out before it.
        given = [(s.args[0] * (1 + 0 * state[0]), s.args[1] + state[0]) for s in solutions]
        solved = [s.func(a, b, **s.keywords).reshape(-1) for s, (a, b) in zip(solutions, given, strict=True)]
        total = torch.cat(solved).sum().reshape(1)
        value = total.double()
        return i + 1, losses.index_put((i.reshape(1),), value), torch.cat([total / 1e3, state[1:]])

    codes = []

    def watched(code: str) -> str:
        codes.append(lean(code))
        return codes[-1]

    monkeypatch.setattr(building, "lean", watched)
    state = torch.full((3,), 0.1, dtype=dtype)
    inputs = [
        torch.tensor(0),
        torch.zeros(8, dtype=torch.float64),
        state,
        torch.tensor(5),
        torch.zeros(8, dtype=torch.float64),
    ]
    body = make_fx(step)(*inputs)
    constants = [getattr(body, n.target) for n in body.graph.nodes if n.op == "get_attr"]
    with body.graph.inserting_before(next(n for n in body.graph.nodes if n.op != "placeholder")):
        for k, node in enumerate(n for n in body.graph.nodes if n.op == "get_attr"):
            node.replace_all_uses_with(body.graph.placeholder(f"constant_{k}"))
            body.graph.erase_node(node)
    body.recompile()
    ready = Loop(body, constants, Packing([state]))
    inputs += constants
    expected = ready.run([value.clone() for value in inputs])
    build(ready, inputs, tmp_path, threads=1)
    found = load(tmp_path)([value.clone() for value in inputs])
    tolerance = 1e-4 if dtype == torch.float32 else 1e-11
    torch.testing.assert_close(found[1], expected[1], rtol=tolerance, atol=tolerance)
    assert expected[1][:5].abs().min() > 0
    loop = codes[0].split("    while (1) {\n")[1].split("\n    }\n")[0]
    assert loop.count("substituted(") > 0
    assert not re.search("triangular_solve|empty_strided", loop)


def test_large_systems_are_the_librarys():
    size = math.isqrt(MOST_PRODUCTS) + 1
    call = (
        "        AtenTensorHandle x_handle;\n        AtenTensorHandle y_handle;\n"
        "        AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_cpu_triangular_solve(b, a, 0, 0, 0, &x_handle, &y_handle));\n"
        "        RAIIAtenTensorHandle x(x_handle);\n        RAIIAtenTensorHandle y(y_handle);\n"
        '        if (_check_aoti_runtime_check_inputs_env()) { assert_size_stride(x, {%dL, 1L}, {1L, 9L}, "solve"); }\n'
        "        cpp_fused_1((const float*)(x.data_ptr()));\n"
    )
    head = "void AOTInductorModel::run_impl(\n"
    assert solved_in_place(head + call % size) == head + call % size
    assert "substituted(b, a, 0, 0, x)" in solved_in_place(head + call % (size - 1))


def test_what_the_compiler_refuses_is_compiled_as_inductor_writes_it(monkeypatch, tmp_path):
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
