"""The layout of the packages (imports, lengths, the wheel) and of the tests."""

from __future__ import annotations

import ast
import inspect
import tomllib
from importlib import import_module
from pathlib import Path, PurePosixPath
from textwrap import dedent

import pytest

ROOT = Path(__file__).resolve().parents[1]
MAY_IMPORT = {"models": {"models"}, "guides": {"guides"}, "inference": {"models", "guides", "inference"}}
LAYERS = (
    "programs",
    "elbos",
    "plots",
    "objectives",
    "optimisers",
    "evidence",
    "nuts",
    "engine",
    "stopping",
    "starting",
    "fitting",
    "diagnostics",
    "comparison",
    "cli",
)
"""The folders of inference/, from the bottom to the top. A folder imports only from folders below it."""
FLAT = {"inference", "inference.latent_pictures"}
"""The only modules that lie in inference/ itself. Both are re-exports, above all folders."""
MAX_FUNCTION_LINES = 60
MAX_MODULE_LINES = 400


def read(root):
    """The source of each module below `root`, by its path relative to `root`."""
    paths = (path for package in MAY_IMPORT for path in sorted((root / package).rglob("*.py")))
    return {PurePosixPath(path.relative_to(root)): path.read_text() for path in paths}


def name_of(path):
    """The dotted name under which a module is imported."""
    parts = path.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path, source):
    """(line, name, relative): each absolute dotted name that a module imports, at any depth of its code."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name, False) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = path.parts[: len(path.parts) - node.level] if node.level else ()
            module = ".".join([*start, *([node.module] if node.module else [])])
            yield from ((node.lineno, f"{module}.{alias.name}", bool(node.level)) for alias in node.names)


def between_packages(sources):
    """Imports of a package that may not be imported there, and absolute imports inside a package."""
    for path, source in sources.items():
        package = path.parts[0]
        for line, name, relative in imports(path, source):
            imported = name.split(".")[0]
            if imported in MAY_IMPORT and imported not in MAY_IMPORT[package]:
                yield f"{path}:{line} imports {imported}, which {package} may not import"
            if imported == package and not relative and path.name != "__init__.py":
                yield f"{path}:{line} imports {name} absolutely: imports inside a package are relative"


def graph(sources):
    """For each module the modules of `sources` that it imports, each with the line of the import."""
    names = {name_of(path) for path in sources}
    edges = {name: {} for name in names}
    for path, source in sources.items():
        for line, name, _ in imports(path, source):
            target = name if name in names else name.rpartition(".")[0]
            if target in names:
                edges[name_of(path)].setdefault(target, line)
    return edges


def layer(name):
    """The height of a module of inference/; None if it lies in no known place."""
    if name in FLAT:
        return len(LAYERS)
    folder = name.split(".")[1]
    return LAYERS.index(folder) if folder in LAYERS else None


def upward_imports(sources):
    """Modules of inference/ outside the layers, and imports that do not point to the own folder or to one below it."""
    edges = {name: targets for name, targets in graph(sources).items() if name.split(".")[0] == "inference"}
    for name, targets in edges.items():
        if layer(name) is None:
            yield f"{name} is in none of the folders {', '.join(LAYERS)}"
            continue
        for target, line in targets.items():
            height = layer(target) if target in edges else None
            if height is not None and height > layer(name):
                yield f"{name}, line {line}, imports {target}, which lies above it"


def circles(sources):
    """Groups of modules each of which imports, through others of the group, itself."""
    edges = graph(sources)
    reached = {name: _reached_from(name, edges) for name in edges}
    groups = {frozenset({name, *(other for other in reached[name] if name in reached[other])}) for name in edges}
    for group in sorted(map(sorted, groups)):
        if len(group) > 1 or group[0] in reached[group[0]]:
            yield f"{', '.join(group)} import each other in a circle"


def _reached_from(name, edges):
    found, left = set(), [name]
    while left:
        new = edges[left.pop()].keys() - found
        found |= new
        left.extend(new)
    return found


def long_functions(sources):
    """Functions and methods past `MAX_FUNCTION_LINES`, signature and docstring included."""
    for path, source in sources.items():
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = node.end_lineno - node.lineno + 1
                if lines > MAX_FUNCTION_LINES:
                    yield f"{path}:{node.lineno} {node.name} has {lines} lines"


def long_modules(sources):
    """Modules past `MAX_MODULE_LINES`."""
    for path, source in sources.items():
        lines = len(source.splitlines())
        if lines > MAX_MODULE_LINES:
            yield f"{path} has {lines} lines"


def without_quick_tests(sources):
    """Test modules of which `make test` runs nothing: every test, or the whole module, is marked slow."""
    for path, source in sources.items():
        body = ast.parse(source).body
        classes = [node for node in body if isinstance(node, ast.ClassDef) and not _is_slow(node)]
        nodes = body + [node for one in classes for node in one.body]
        tests = [node for node in nodes if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")]
        whole = any(ast.unparse(node) == "pytestmark = pytest.mark.slow" for node in body)
        if whole or all(map(_is_slow, tests)):
            yield f"{path} has no test that is not marked slow"


def _is_slow(node):
    return not {ast.unparse(decorator) for decorator in node.decorator_list}.isdisjoint({"SLOW", "pytest.mark.slow"})


SOURCES = read(ROOT)
CHECKS = [between_packages, upward_imports, circles, long_functions, long_modules]


@pytest.mark.parametrize("check", CHECKS)
def test_the_packages_keep_the_layout(check):
    violations = list(check(SOURCES))
    assert not violations, "\n".join(violations)


def test_the_layers_are_the_folders():
    assert sorted(LAYERS) == sorted(
        {path.parts[1] for path in SOURCES if path.parts[0] == "inference" and len(path.parts) > 2}
    )


PASSES = {
    "models/base.py": "from math import pi\n",
    "guides/latents.py": "import torch\n",
    "inference/__init__.py": "from .fitting.fit import fit\n",
    "inference/programs/draws.py": "from models import Model\n",
    "inference/elbos/estimate.py": "from ..programs.draws import draws\n",
    "inference/fitting/fit.py": "from ..elbos import estimate\nfrom .run import Run\n",
    "inference/fitting/run.py": "",
}
VIOLATIONS = [
    (between_packages, "models/base.py", "from guides import Family", "models/base.py:1 imports guides"),
    (between_packages, "inference/fitting/run.py", "from inference.elbos import x", "run.py:1 imports inference.elbos.x abs"),
    (
        upward_imports,
        "inference/elbos/x.py",
        "from ..fitting.fit import fit",
        "inference.elbos.x, line 1, imports inference.fi",
    ),
    (
        upward_imports,
        "inference/elbos/x.py",
        "from ..fitting import fit",
        "inference.elbos.x, line 1, imports inference.fitting.fi",
    ),
    (
        upward_imports,
        "inference/elbos/x.py",
        "def f():\n    from .. import fit",
        "inference.elbos.x, line 2, imports inference,",
    ),
    (upward_imports, "inference/flat.py", "", "inference.flat is in none of the folders"),
    (upward_imports, "inference/utils/x.py", "", "inference.utils.x is in none of the folders"),
    (circles, "inference/fitting/run.py", "from .fit import fit", "inference.fitting.fit, inference.fitting.run import each"),
    (circles, "inference/fitting/run.py", "from . import fit", "inference.fitting.fit, inference.fitting.run import each"),
    (
        circles,
        "inference/fitting/run.py",
        "def f():\n    from ..elbos import estimate\n    from .fit import fit",
        "in a circle",
    ),
    (circles, "models/base.py", "from . import base", "models.base import each other"),
    (long_functions, "guides/latents.py", "def f():\n" + 60 * "    pass\n", "guides/latents.py:1 f has 61 lines"),
    (
        long_functions,
        "guides/latents.py",
        'class A:\n    def f(self):\n        """' + 58 * "Text.\n" + '"""\n        pass',
        "guides/latents.py:2 f has 61 lines",
    ),
    (long_modules, "guides/latents.py", 401 * "x = 1\n", "guides/latents.py has 401 lines"),
]


def written(root, files):
    for name, source in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(dedent(source))
    return read(root)


@pytest.mark.parametrize("check", CHECKS)
def test_a_good_layout_passes(check, tmp_path):
    limits = {"guides/limits.py": "def f():\n" + 59 * "    pass\n" + 340 * "x = 1\n"}
    assert not list(check(written(tmp_path, {**PASSES, **limits})))


@pytest.mark.parametrize(("check", "file", "source", "message"), VIOLATIONS)
def test_a_violation_is_found(check, file, source, message, tmp_path):
    (found,) = check(written(tmp_path, {**PASSES, file: source}))
    assert message in found


def test_every_test_file_is_part_of_make_test():
    tests = {path.relative_to(ROOT): path.read_text() for path in sorted((ROOT / "tests").glob("test_*.py"))}
    assert not list(without_quick_tests(tests))


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("@SLOW\ndef test_a(): pass\ndef test_b(): pass", 0),
        ("class TestA:\n    def test_a(self): pass", 0),
        ("pytestmark = pytest.mark.slow\ndef test_a(): pass", 1),
        ("@pytest.mark.slow\ndef test_a(): pass\ndef help(): pass", 1),
        ("@SLOW\nclass TestA:\n    def test_a(self): pass", 1),
        ("class TestA:\n    @SLOW\n    def test_a(self): pass", 1),
    ],
)
def test_a_file_of_slow_tests_is_found(source, found):
    assert len(list(without_quick_tests({PurePosixPath("tests/test_x.py"): source}))) == found


@pytest.mark.parametrize("name", sorted(FLAT))
def test_what_lies_flat_is_a_re_export(name):
    (source,) = (source for path, source in SOURCES.items() if name_of(path) == name)
    documentation, *statements, exports = ast.parse(source).body
    assert isinstance(documentation, ast.Expr)
    assert all(isinstance(statement, ast.ImportFrom) for statement in statements)
    assert isinstance(exports, ast.Assign)


@pytest.mark.parametrize("path", SOURCES, ids=str)
def test_a_module_is_documented_and_exports_what_it_says(path):
    assert ast.get_docstring(ast.parse(SOURCES[path]))
    module = import_module(name_of(path))
    for name in module.__all__:
        exported = getattr(module, name)
        if inspect.isclass(exported) or inspect.isroutine(exported):
            assert exported.__doc__, f"{name} has no docstring"


def test_every_package_is_in_the_wheel():
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    assert sorted(listed) == sorted(name_of(path) for path in SOURCES if path.name == "__init__.py")
