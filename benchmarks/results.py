"""benchmarks/RESULTS.md: one section for each script, printed by it, with the versions and the machine."""

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
    """Prints `text` and puts it into the section of `script`, in place of what that section held."""
    name = Path(script).name
    section = f"<!-- {name} -->\n{text.strip()}\n\n{environment()}\n<!-- /{name} -->"
    print(section)
    old = FILE.read_text() if FILE.exists() else TITLE
    pattern = re.compile(rf"<!-- {re.escape(name)} -->.*?<!-- /{re.escape(name)} -->", re.DOTALL)
    new = pattern.sub(lambda _: section, old) if pattern.search(old) else f"{old.rstrip()}\n\n{section}\n"
    FILE.write_text(new)


def environment() -> str:
    """The versions and the machine that the numbers come from."""
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
