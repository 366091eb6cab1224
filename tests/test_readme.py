"""The README's script runs unchanged and equals the one in examples/; its tables are complete."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from typer.main import get_command

import guides
import models
from guides import Family
from inference.cli import app
from models import Model

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()


def test_script_runs(tmp_path):
    (script,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert script in (ROOT / "examples" / "quickstart.py").read_text() + "\n"
    assert len([line for line in script.splitlines() if line.strip()]) <= 22
    (tmp_path / "script.py").write_text(script)
    environment = {"PYTHONPATH": str(ROOT), "PATH": "", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, tmp_path / "script.py"], capture_output=True, text=True, check=False, env=environment, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    evidence, elbo, gap = map(float, re.search(r"log p\(x\) = (\S+) = ELBO (\S+) ± \S+ \+ KL (\S+)", done.stdout).groups())
    assert abs(evidence - elbo - gap) < 0.02
    assert "amortized full rank" in done.stdout


def test_commands_and_their_options_exist():
    known = {
        name: {o for p in command.params for o in p.opts} | {"--help"} for name, command in get_command(app).commands.items()
    }
    used = re.findall(r"(?:`|bin/)taut (\w+)([^\n`]*)", README.replace("\\\n", " "))
    assert any("--guides" in options for _, options in used)
    for command, options in used:
        assert set(re.findall(r"--[a-z-]+", options)) <= known[command]


def test_tables_name_every_model_and_family():
    for name in models.__all__:
        export = getattr(models, name)
        if isinstance(export, type) and issubclass(export, Model) and not getattr(export, "__abstractmethods__", None):
            assert f"| `{name}`" in README, f"{name} is not in the README's table of models"
    for name in guides.__all__:
        export = getattr(guides, name)
        if isinstance(export, type) and issubclass(export, Family) and export is not Family:
            assert f"`{name}(" in README, f"{name} is not in the README's table of guides"
