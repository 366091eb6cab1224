"""The layout that the design draws: three packages, one direction, and nothing left out of the wheel."""

from __future__ import annotations

import ast
import tomllib
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MAY_IMPORT = {"models": {"models"}, "guides": {"guides"}, "inference": {"models", "guides", "inference"}}
MODULES = [path for package in MAY_IMPORT for path in sorted((ROOT / package).rglob("*.py"))]


def imported(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.module.split(".")[0]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
class TestModule:
    def test_imports_in_one_direction(self, path):
        package = path.relative_to(ROOT).parts[0]
        ours = {name for name in imported(path) if name in MAY_IMPORT}
        assert ours <= MAY_IMPORT[package]
        assert package not in ours or path.name == "__init__.py", "imports inside a package are relative"

    def test_is_documented_and_exports_what_it_says(self, path):
        tree = ast.parse(path.read_text())
        assert ast.get_docstring(tree)
        parts = path.relative_to(ROOT).with_suffix("").parts
        module = import_module(".".join(parts[:-1] if parts[-1] == "__init__" else parts))
        for name in module.__all__:
            documented = getattr(module, name)
            assert getattr(documented, "__doc__", None), f"{name} has no docstring"

    def test_is_small(self, path):
        assert len(path.read_text().splitlines()) <= 400


def test_every_package_is_in_the_wheel():
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    there = {".".join(path.parent.relative_to(ROOT).parts) for path in MODULES if path.name == "__init__.py"}
    assert set(listed) == there
    assert len(listed) == len(set(listed))
