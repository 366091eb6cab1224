"""Writes benchmarks/RESULTS.md: one section for each script, with the versions and the machine that it ran on."""

from __future__ import annotations

import os
import platform
import re
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

__all__ = ["environment", "record"]

FILE = Path(__file__).with_name("RESULTS.md")
TITLE = """# Results

Each section is printed by the script that is named in the comments around it. Notes in italics are written by hand.
"""


def record(script: str, text: str) -> None:
    """Prints `text` and replaces the section of `script` by it; adds the section if there is none."""
    name = Path(script).name
    section = f"<!-- {name} -->\n{text.strip()}\n\n{environment()}\n<!-- /{name} -->"
    print(section)
    old = FILE.read_text() if FILE.exists() else TITLE
    pattern = re.compile(rf"<!-- {re.escape(name)} -->.*?<!-- /{re.escape(name)} -->", re.DOTALL)
    new = pattern.sub(lambda _: section, old) if pattern.search(old) else f"{old.rstrip()}\n\n{section}\n"
    FILE.write_text(new)


def environment() -> str:
    """Versions of Python and packages, processor and number of cores, as one line."""
    versions = []
    for package in ("torch", "pyro-ppl", "numpyro", "jax"):
        try:
            versions.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            continue
    model = re.search(r"model name\s*: (.*)", _read("/proc/cpuinfo"))
    cpu = model.group(1) if model else platform.machine()
    return f"Python {platform.python_version()}, {', '.join(versions)}; {cpu}, {os.cpu_count()} cores."


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""
