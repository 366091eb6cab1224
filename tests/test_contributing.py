"""Each recipe of CONTRIBUTING.md is followed in a copy of the packages: one file, one line, and everything finds it."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

import pytest
from test_layout import CHECKS, ROOT, read

TEXT = (ROOT / "CONTRIBUTING.md").read_text()
KINDS = ("model", "family", "source", "encoder", "objective", "solver", "stopping rule", "start", "bound")
PACKAGES = ("models", "guides", "inference")


class Recipe(NamedTuple):
    """The instructions and the example that CONTRIBUTING.md gives for one kind of extension."""

    path: str
    """The example's file, such as models/gamma_exponential.py."""
    source: str
    inits: list[str]
    """The `__init__` files that must name it."""

    @property
    def name(self):
        """The example's only export."""
        statements = ast.parse(self.source).body
        (exports,) = (s.value for s in statements if isinstance(s, ast.Assign) and s.targets[0].id == "__all__")
        (name,) = ast.literal_eval(exports)
        return name


def recipe(kind, text):
    """Finds the row of the table for this kind, and the example whose file lies where the row says.

    Raises:
        ValueError: if there is no such row or no such example.
    """
    rows = re.findall(r"^\| (.*?) \| `(.*?)` \| (.*?) \|$", text, re.MULTILINE)
    blocks = re.findall(r"^```python\n# (\S+\.py)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    for title, folder, inits in rows:
        if re.search(rf"\b{kind}\b", title):
            for path, source in blocks:
                if f"{Path(path).parent}/" == folder:
                    return Recipe(path, source, re.findall(r"`(.*?)`", inits))
            raise ValueError(f"CONTRIBUTING.md has no example of a {kind} in {folder}.")
    raise ValueError(f"CONTRIBUTING.md does not say where a {kind} goes.")


def follow(recipe, root):
    """Writes the example's file, and its line into each `__init__`."""
    (root / recipe.path).write_text(recipe.source)
    for init in recipe.inits:
        module = Path(recipe.path).relative_to(Path(init).parent).with_suffix("")
        text = (root / init).read_text()
        assert text.count("__all__ = [") == 1
        line = f'from .{".".join(module.parts)} import {recipe.name}\n\n__all__ = ["{recipe.name}", '
        (root / init).write_text(text.replace("__all__ = [", line))


@pytest.fixture
def copy(tmp_path):
    """A copy of the repository in which every recipe has been followed."""
    for folder in (*PACKAGES, "tests"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("pyproject.toml", "CONTRIBUTING.md", "README.md"):
        shutil.copy(ROOT / file, tmp_path)
    for kind in KINDS:
        follow(recipe(kind, TEXT), tmp_path)
    return tmp_path


def run(copy, *arguments):
    environment = {**os.environ, "PYTHONPATH": str(copy), "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    environment.pop("PYTEST_XDIST_WORKER", None)
    return subprocess.run(
        [sys.executable, *map(str, arguments)], cwd=copy, env=environment, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_has_a_recipe_of_one_file(kind):
    found = recipe(kind, TEXT)
    assert found.name in found.source.split("__all__", 1)[1]
    assert not (ROOT / found.path).exists(), "the example is there already: show another one"
    assert all((ROOT / init).exists() for init in found.inits)


@pytest.mark.parametrize("kind", KINDS)
def test_a_recipe_without_its_example_is_noticed(kind):
    path = recipe(kind, TEXT).path
    with pytest.raises(ValueError, match=f"no example of a {kind} in"):
        recipe(kind, TEXT.replace(f"```python\n# {path}\n", "```python\n"))
    with pytest.raises(ValueError, match=f"does not say where a {kind} goes"):
        recipe(kind, re.sub(rf"^\| .*\b{kind}\b.*$", "", TEXT, flags=re.MULTILINE))


def test_the_examples_keep_the_layout(copy):
    sources, examples = read(copy), [Path(recipe(kind, TEXT).path) for kind in KINDS]
    assert {str(path) for path in examples} <= {str(path) for path in sources}
    for check in CHECKS:
        assert not [found for found in check(sources) if any(path.stem in found for path in examples)]


CONTRACTS = {
    "model": "tests/test_exact_answers.py tests/test_conjugate.py tests/test_targets.py",
    "family": "tests/test_guides.py",
    "source": "tests/test_guides.py",
    "encoder": "tests/test_guides.py",
    "objective": "tests/test_objectives.py",
    "solver": "tests/test_optimisers.py",
    "stopping rule": "tests/test_stopping.py",
    "start": "tests/test_starting.py",
    "bound": "tests/test_evidence.py",
}
"""The test files that hold the contract tests of each kind."""


def test_the_contract_tests_find_the_examples_and_pass(copy):
    names = {kind: recipe(kind, TEXT).name for kind in KINDS}
    # Families and sources go with every model, objectives with every family: a few combinations are enough here.
    few = dict.fromkeys(["family", "source"], " and (TestFamily or LocalGaussian or GaussianMean)")
    few["objective"] = " and not FullRank and not minibatches"
    chosen = " or ".join(f"({name}{few.get(kind, '')})" for kind, name in names.items())
    files = sorted({file for files in CONTRACTS.values() for file in files.split()})
    done = run(
        copy, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not slow", "-k", chosen, "--junitxml=found.xml", *files
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    cases = ElementTree.parse(copy / "found.xml").iter("testcase")
    passed = [f"{case.get('classname')}::{case.get('name')}" for case in cases if case.find("skipped") is None]
    for kind, name in names.items():
        modules = [file.removesuffix(".py").replace("/", ".") for file in CONTRACTS[kind].split()]
        for module in modules:
            assert any(case.startswith(module) and name in case for case in passed), f"no test of {module} has found {name}"


SCRIPT = """
from pyro.infer.autoguide import AutoNormal
from typer.testing import CliRunner

import guides, inference, models
from inference import compare
from inference.cli import app


def taut(*arguments):
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    return " ".join(result.output.split())


listed = taut("list")
assert all(name in listed for kind, name in NAMES.items() if kind != "bound"), listed

source, family, encoder = (getattr(guides, NAMES[kind]) for kind in ("source", "family", "encoder"))
guide = f"{NAMES['source']}({NAMES['family']})"
text = taut(
    "compare", "--model", "LocalGaussian" if source.local else "GaussianMean", "--guides", guide, "--objectives",
    NAMES["objective"], "--start", NAMES["start"], "--steps", "3", "--seeds", "1", "--draws", "5", "--jobs", "1",
    "--out", "out",
)
assert guide in text and NAMES["objective"] in text

model, x = models.LocalGaussian.demo()
makers = {"encoder": lambda m: guides.Amortized(m, family(), encoder())}
table = compare(model, makers, x, steps=3, seeds=1, draws=5).to_frame()
assert list(table.guide) == ["prior", "encoder", "exact posterior"]

model, x = getattr(models, NAMES["model"]).demo()
model, x = model.double(), x.double()
table = compare(model, {"AutoNormal": AutoNormal}, x, steps=3, seeds=1, draws=5).to_frame()
assert abs(table.evidence.iloc[-1] - float(model.log_evidence(x))) < 1e-9 and abs(table.gap.iloc[-1]) < 1e-9
found = getattr(inference, NAMES["bound"])(model, guides.Posterior(model), x)
assert abs(float(found.value - model.log_evidence(x))) < 1e-9
"""


def test_the_command_line_and_compare_find_the_examples(copy):
    names = {kind: recipe(kind, TEXT).name for kind in KINDS}
    done = run(copy, "-c", f"NAMES = {names}\n{SCRIPT}")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
