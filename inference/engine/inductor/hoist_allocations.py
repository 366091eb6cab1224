"""Rewrites Inductor's C++ so that a loop allocates its temporaries once instead of in each step."""

from __future__ import annotations

import re
from collections import Counter
from math import prod

__all__ = ["MAX_HOISTED_BYTES", "hoisted"]

MAX_HOISTED_BYTES = 1 << 20
"""The largest temporary that is allocated before the loop; a larger one would raise the peak memory of a fit."""


def hoisted(code: str) -> str:
    """The same program with the allocation of temporaries moved before the loop.

    In each step Inductor's wrapper allocates every temporary, and makes two handles of each tensor that the loop reads; in a
    small step this takes nearly all the time. Temporaries that are only written and read by kernels and library calls are
    moved before the loop, with their views and addresses. A tensor that a step hands on to the next is swapped with the one
    it was computed from, so the loop overwrites the tensors that it starts from. Every other line is unchanged, and so is
    the whole program if its loop is not as expected.

    Args:
        code: the C++ wrapper, with one loop, which runs while the loop's first tensor is below a count.
    """
    if code.count(_LOOP) != 1:
        return code
    code = _HANDED_VIEW.sub(_named_first, code)
    head, rest = code.split(_LOOP)
    body, tail = rest.split("\n    }\n", 1)
    condition = _CONDITION.search(body)
    compared = [] if condition is None else re.findall(r"\(const int64_t\*\)\((\w+)\.data_ptr\(\)\)", condition[0])
    sources = dict(_ARGUMENT.findall(body))
    if condition is None or len(compared) != 2 or not sources.keys() >= {*compared}:
        return code
    arrays = "".join(found[0] for found in _ARRAY.finditer(condition[0]))
    body = _ARGUMENT.sub("", f"{body[: condition.start()]}{arrays}{body[condition.end() :]}\n")
    body = _RESET.sub(lambda reset: "" if reset[1] in sources else reset[0], _CHECK.sub("", body))
    body = re.sub(r"\b\w+_arg\d+_1\b", lambda name: sources.get(name[0], name[0]), body)
    handed_on = _HAND_ON.findall(body)
    carried = [kept for kept, _ in handed_on]
    known = {*carried} == {*re.findall(r"(\w+) = std::move\(", body)}
    if not known or any(made in sources.values() and made != kept for kept, made in handed_on):
        return code
    first, count = (sources[name] for name in compared)
    step = _Step(body, carried, [name for name in dict.fromkeys(sources.values()) if name not in carried])
    test = f"        if (*(const int64_t*)({first}_p) >= *(const int64_t*)({count}_p)) break;\n"
    return f"{head}{''.join(step.before)}{_LOOP}{''.join(step.first)}{test}{''.join(step.rest)}    }}\n{tail}"


class _Step:
    """Divides the body of the loop.

    Args:
        body: its lines.
        carried: the names of the tensors that a step gets from the step before.
        given: the names of the tensors that are the same for all steps.

    Attributes:
        before: lines to run once, before the loop.
        first: lines to run at the beginning of a step, before the test whether to go on.
        rest: the other lines of a step.
    """

    def __init__(self, body: str, carried: list[str], given: list[str]) -> None:
        self.sizes = {name: [int(n) for n in re.findall(r"(\d+)L", numbers)] for name, numbers in _ARRAY.findall(body)}
        self.dtypes = {name: dtype for name, _, dtype in _ALLOCATION.findall(body)}
        self.body = body
        self.swapped = {made for _, made in _HAND_ON.findall(body) if self._can_be_swapped(made)}
        self.fixed = {*given}
        self.parts: dict[str, str] = {}
        self.before = [_address(name) for name in given]
        self.first = [_address(name) for name in [*carried, *sorted(self.swapped)]]
        self.rest: list[str] = []
        self.addresses = {*given, *carried, *self.swapped}
        place = 0
        while place < len(body):
            for pattern, act in (
                (_ARRAY, self._array),
                (_ALLOCATION, self._allocation),
                (_VIEW, self._view),
                (_HAND_ON, self._hand_on),
                (_RESET, self._reset),
                (_LINE, self._line),
            ):
                if found := pattern.match(body, place):
                    act(found)
                    place = found.end()
                    break

    def _can_be_swapped(self, name: str) -> bool:
        return name in self.dtypes and len(re.findall(rf"std::move\({name}\)", self.body)) == 1

    def _can_be_fixed(self, name: str, shape: str, dtype: str) -> bool:
        """Whether the temporary is small, and neither it nor a view of it is handed on."""
        moved = {*re.findall(r"std::move\((\w+)\)", self.body)}
        family = {name}
        for view, source, _ in _VIEW.findall(self.body):
            family |= {view} if source in family else set()
        known = shape in self.sizes and dtype in _BYTES
        return known and prod(self.sizes[shape]) * _BYTES[dtype] <= MAX_HOISTED_BYTES and not family & moved

    def _array(self, found: re.Match[str]) -> None:
        self.before.append(found[0])

    def _allocation(self, found: re.Match[str]) -> None:
        name = found[1]
        if name in self.swapped:
            self.before.append(found[0])
        elif self._can_be_fixed(*found.groups()):
            self._fix(name, found[0])
        else:
            self.rest.append(found[0])

    def _fix(self, name: str, made: str) -> None:
        self.before += [made, _address(name)]
        self.fixed.add(name)
        self.addresses.add(name)

    def _view(self, found: re.Match[str]) -> None:
        view, source, offset = found.groups()
        uses = Counter(re.findall(rf"\b{view}\b(\.\w+\(\))?", self.body))
        if source in self.fixed:
            self._fix(view, f"{found[0].split(';')[0]};\n")
        elif source in self.swapped and {*uses} <= {"", ".data_ptr()", ".reset()"} and uses[""] == 1:
            shift = int(offset) * _BYTES[self.dtypes[source]]
            self.rest.append(f"        auto* const {view}_p = static_cast<char*>({source}_p) + {shift};\n")
            self.parts[view] = source
            self.addresses.add(view)
        else:
            self.rest.append(f"{found[0].split(';')[0]};\n" if source in self.swapped else found[0])

    def _hand_on(self, found: re.Match[str]) -> None:
        kept, made = found.groups()
        if made in self.swapped:
            self.rest.append(f"        std::swap({kept}, {made});\n")
        elif kept != made:
            self.rest.append(found[0])

    def _reset(self, found: re.Match[str]) -> None:
        if found[1] not in self.fixed | self.swapped | self.parts.keys():
            self.rest.append(found[0])

    def _line(self, found: re.Match[str]) -> None:
        line = re.sub(r"\b(\w+)\.data_ptr\(\)", lambda n: f"{n[1]}_p" if n[1] in self.addresses else n[0], found[0])
        self.rest.append(_INLINE_VIEW.sub(self._inline_view, line))

    def _inline_view(self, found: re.Match[str]) -> str:
        if found[1] not in self.fixed:
            return found[0]
        name = f"view_{len(self.before)}"
        self.before.append(f"        auto {name} = {found[0]};\n")
        return name


def _named_first(found: re.Match[str]) -> str:
    """Gives a view that is handed on a name of its own."""
    kept, view = found.groups()
    return f"        auto {kept}_next = {view};  // alias\n        {kept}.reset();\n        {kept} = std::move({kept}_next);\n"


def _address(name: str) -> str:
    return f"        auto* const {name}_p = {name}.data_ptr();\n"


_LOOP = "    while (1) {\n"
_LINE = re.compile(r".*\n")
_CONDITION = re.compile(r" +// subgraph: goes_on\n(?:.*\n)*? +if \(!\w+\) break;\n")
_ARGUMENT = re.compile(
    r" +AtenTensorHandle (\w+)_handle;\n"
    r" +AOTI_TORCH_ERROR_CODE_CHECK\(aoti_torch_assign_tensors_out\((\w+), &\1_handle\)\);\n"
    r" +RAIIAtenTensorHandle \1\(\1_handle\);\n"
)
_ARRAY = re.compile(r" +static constexpr int64_t \*?(\w+)(?:\[\] = \{(.*)\}|=nullptr);\n")
_ALLOCATION = re.compile(
    r" +AtenTensorHandle (\w+)_handle;\n"
    r" +AOTI_TORCH_ERROR_CODE_CHECK\(aoti_torch_empty_strided\(\d+, (\w+), \w+, cached_torch_dtype_(\w+), .*\n"
    r" +RAIIAtenTensorHandle \1\(\1_handle\);\n"
)
_VIEW = re.compile(
    r" +auto (\w+) = wrap_with_raii_handle_if_needed\(reinterpret_tensor_wrapper\((\w+), \d+, \w+, \w+, (\d+)L\)\);"
    r"(?: \w+\.reset\(\);)?  // (?:alias|reuse)\n"
)
_INLINE_VIEW = re.compile(r"wrap_with_raii_handle_if_needed\(reinterpret_tensor_wrapper\((\w+), \d+, \w+, \w+, \d+L\)\)")
_RESET = re.compile(r" +(\w+)\.reset\(\);\n")
_HAND_ON = re.compile(r" +(\w+)\.reset\(\);\n +\1 = std::move\((\w+)\);\n")
_HANDED_VIEW = re.compile(
    rf" +(\w+)\.reset\(\);\n +\1 = std::move\(({_INLINE_VIEW.pattern})\);\n".replace(r"(\w+), \d", r"\w+, \d")
)
_CHECK = re.compile(r" +if \(_check_aoti_runtime_check_inputs_env\(\)\) \{.*\}\n")
_BYTES = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2, "int64": 8, "int32": 4, "int16": 2, "int8": 1, "bool": 1}
