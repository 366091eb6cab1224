"""Small triangular systems in compiled code, without a call of the library that takes longer than solving them."""

from __future__ import annotations

import re
from functools import partial
from math import prod

__all__ = ["solved_in_place"]

MOST_PRODUCTS = 1 << 13
"""Of a matrix's entries and its right-hand sides; beyond that the library's blocked solution is faster."""


def solved_in_place(code: str) -> str:
    """The wrapper, with its small calls of triangular_solve, 4 µs each, replaced by substitution in the order of memory."""
    solved = _CALL.sub(partial(_substitution, code), code)
    place = solved.rfind("void AOTInductorModel::run_impl(")
    return code if solved == code or place < 0 else solved[:place] + _SOURCE + solved[place:]


def _substitution(code: str, found: re.Match[str]) -> str:
    solution, copy, tensors, upper, unit, resets, sizes, strides = found.groups()
    shape = [int(n) for n in re.findall(r"(\d+)L", sizes)]
    steps = [int(n) for n in re.findall(r"(\d+)L", strides)]
    kinds = {*re.findall(rf"\((?:const )?(\w+)\*\)\({solution}\.data_ptr\(\)\)", code)}
    # The call also returns a copy of the matrix, which nobody reads.
    unread = len(re.findall(rf"\b{copy}\b", code)) - len(re.findall(rf"\b{copy}\.reset\(\)", code)) == 1
    if len(kinds) != 1 or not kinds <= _DTYPES.keys() or not unread or len(shape) not in {2, 3} or steps[-2] != 1:
        return found[0]
    if shape[-2] ** 2 * shape[-1] > MOST_PRODUCTS or prod(shape) == 0:
        return found[0]
    return (
        f"        static constexpr int64_t {solution}_sizes[] = {{{sizes}}};\n"
        f"        static constexpr int64_t {solution}_strides[] = {{{strides}}};\n"
        f"        AtenTensorHandle {solution}_handle;\n"
        f"        AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided({len(shape)}, {solution}_sizes, "
        f"{solution}_strides, cached_torch_dtype_{_DTYPES[kinds.pop()]}, cached_torch_device_type_cpu, this->device_idx_, "
        f"&{solution}_handle));\n"
        f"        RAIIAtenTensorHandle {solution}({solution}_handle);\n"
        f"        AOTI_TORCH_ERROR_CODE_CHECK(substituted({tensors}, {upper}, {unit}, {solution}));\n{resets}"
    )


_DTYPES = {"float": "float32", "double": "float64"}
_CALL = re.compile(
    r" +AtenTensorHandle (\w+)_handle;\n"
    r" +AtenTensorHandle (\w+)_handle;\n"
    r" +AOTI_TORCH_ERROR_CODE_CHECK\(aoti_torch_cpu_triangular_solve\((.*), ([01]), 0, ([01]), &\1_handle, &\2_handle\)\);\n"
    r" +RAIIAtenTensorHandle \1\(\1_handle\);\n"
    r" +RAIIAtenTensorHandle \2\(\2_handle\);\n"
    r"((?: +\w+\.reset\(\);\n)*)"
    r" +if \(_check_aoti_runtime_check_inputs_env\(\)\) \{ assert_size_stride\(\1, \{(.*?)\}, \{(.*?)\}, .*\n"
)
_SOURCE = r"""
#pragma GCC push_options
#pragma GCC optimize("O3")
template <typename T>
static void substitute(const T* a, int64_t down, int64_t across, T* x, int64_t n, bool upper, bool unit) {
    for (int64_t k = 0; k < n; k++) {
        const int64_t i = upper ? n - 1 - k : k;
        const int64_t begin = upper ? i + 1 : 0, end = upper ? n : i;
        if (down == 1) {
            // Columns lie together: what is known is taken from the rest.
            if (!unit) x[i] /= a[i * (across + 1)];
            const T known = x[i];
            const T* column = a + i * across;
            const int64_t first = upper ? 0 : i + 1, last = upper ? i : n;
            #pragma omp simd
            for (int64_t j = first; j < last; j++) x[j] -= known * column[j];
        } else {
            const T* row = a + i * down;
            T sum = 0;
            if (across == 1) {
                #pragma omp simd reduction(+ : sum)
                for (int64_t j = begin; j < end; j++) sum += row[j] * x[j];
            } else {
                for (int64_t j = begin; j < end; j++) sum += row[j * across] * x[j];
            }
            x[i] -= sum;
            if (!unit) x[i] /= row[i * across];
        }
    }
}

template <typename T>
static void substitute_all(AtenTensorHandle b, AtenTensorHandle a, bool upper, bool unit, AtenTensorHandle x) {
    int64_t dims, *size, *b_stride, *a_stride, *x_stride;
    void *b_data, *a_data, *x_data;
    aoti_torch_get_dim(x, &dims);
    aoti_torch_get_sizes(x, &size);
    aoti_torch_get_strides(b, &b_stride);
    aoti_torch_get_strides(a, &a_stride);
    aoti_torch_get_strides(x, &x_stride);
    aoti_torch_get_data_ptr(b, &b_data);
    aoti_torch_get_data_ptr(a, &a_data);
    aoti_torch_get_data_ptr(x, &x_data);
    const int64_t row = dims - 2, column = dims - 1, n = size[row], batch = dims == 3 ? size[0] : 1;
    for (int64_t m = 0; m < batch; m++) {
        const T* matrix = static_cast<const T*>(a_data) + (dims == 3 ? m * a_stride[0] : 0);
        for (int64_t k = 0; k < size[column]; k++) {
            const T* given = static_cast<const T*>(b_data) + (dims == 3 ? m * b_stride[0] : 0) + k * b_stride[column];
            T* found = static_cast<T*>(x_data) + (dims == 3 ? m * x_stride[0] : 0) + k * x_stride[column];
            for (int64_t i = 0; i < n; i++) found[i] = given[i * b_stride[row]];
            substitute(matrix, a_stride[row], a_stride[column], found, n, upper, unit);
        }
    }
}
#pragma GCC pop_options

static AOTITorchError substituted(AtenTensorHandle b, AtenTensorHandle a, bool upper, bool unit, AtenTensorHandle x) {
    int32_t dtype;
    aoti_torch_get_dtype(x, &dtype);
    if (dtype == aoti_torch_dtype_float32()) substitute_all<float>(b, a, upper, unit, x);
    else substitute_all<double>(b, a, upper, unit, x);
    return AOTI_TORCH_SUCCESS;
}

"""
