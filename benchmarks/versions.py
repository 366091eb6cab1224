"""Do two versions of this suite compute the same numbers? Runs the same fits and estimates in two checkouts and compares them.

    git worktree add ../taut-old v1.0               # any commit; `git worktree remove ../taut-old` afterwards
    python benchmarks/versions.py --old ../taut-old --new . [--pairs EightSchools Auto …] [--engines Eager Graph …]

The cases are pairs of model and guide times engines and objectives, other ways to fit, and estimates such as `elbo`, all with
fixed seeds. They are those of this script's own checkout (`version_runs/`) and use only names that both versions have. Each
checkout runs all of them in one process of its own, by the interpreter that runs this script, on one thread and with an empty
cache of compiled loops. CompiledLoop runs four pairs and compiles for some 20 s each; leave it out by
`--engines Eager Graph Auto`. Auto takes up the loops that CompiledLoop has compiled; without them it runs short fits by Pyro.
A full run takes about five minutes of one core for both versions together.

Compared are losses, final parameters, where a fit stopped, the values of estimates, and the categories of warnings, since an
engine that falls back to Pyro warns. Fits by Eager must be equal to the last bit: they are the same operations in the same
order. Other engines capture a step as a graph, estimates process draws in chunks, and a new version may order, fuse or chunk
these operations differently. Each then rounds differently, by some 1e-16 of its value, and 30 steps of Adam, which divides by
the root of a running mean square, amplify that. The tolerance is that of the tests of the engines: 1e-8 in double and 1e-3 in
single precision, relative to the largest magnitude in an array, or to 1 if that is larger. Other noise or another update gives
differences far above it. Auto and `fit_many` take steps in blocks whose length depends on the clock, so that even two runs of
one version may differ in the last bits.

The exit code is 1 if a case differs or fails, else 0.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

ENGINES = ["Eager", "Graph", "CompiledLoop", "Auto"]
MAX_DIFFERENCE = {"double": 1e-8, "single": 1e-3}
"""Tolerance for all but fits by Eager."""


class Row(NamedTuple):
    """The comparison of one case."""

    pair: str
    method: str
    engine: str
    difference: str
    verdict: str
    """"same", "DIFFERS" or "FAILS"."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--old", type=Path, required=True, help="a checkout of the old version")
    parser.add_argument("--new", type=Path, required=True, help="a checkout of the new version")
    parser.add_argument(
        "--pairs", nargs="+", default=[], metavar="WORD", help="only pairs whose names contain one of these words"
    )
    parser.add_argument("--engines", nargs="+", default=ENGINES, choices=ENGINES, help="all by default")
    options = parser.parse_args()
    for checkout in (options.old, options.new):
        if not (checkout / "inference").is_dir():
            parser.error(f"{checkout} is no checkout of this suite: it has no folder inference.")
    old, new = (numbers(checkout, options) for checkout in (options.old, options.new))
    rows = [compared(case, old.get(case), new.get(case)) for case in old | new]
    print(f"old: {commit(options.old)}\nnew: {commit(options.new)}\n")
    print(table(rows))
    bad = sum(row.verdict != "same" for row in rows)
    pairs = len({row.pair for row in rows})
    print(f"\n{len(rows)} cases of {pairs} pairs: {len(rows) - bad} the same, {bad} that differ or fail.")
    return int(bad > 0)


def numbers(checkout: Path, options: argparse.Namespace) -> dict[tuple[str, ...], dict[str, Any]]:
    """Runs the worker in a process that imports the packages of `checkout`; returns what it recorded of each case."""
    print(f"{checkout}:", file=sys.stderr)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "numbers.json")
        paths = [str(checkout.resolve()), str(Path(__file__).resolve().parent)]
        caches = {name: str(Path(folder, name)) for name in ("TAUT_CACHE", "TORCHINDUCTOR_CACHE_DIR")}
        environment = {**os.environ, **caches, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-P", "-m", "version_runs.worker", "--checkout", str(checkout.resolve()), "--out", str(out)]
        command += ["--engines", *options.engines, "--pairs", *options.pairs]
        done = subprocess.run(command, env=environment, cwd=folder, check=False)
        if done.returncode:
            raise SystemExit(f"the cases did not run in {checkout}: see above.")
        return {tuple(record["case"]): record for record in json.loads(out.read_text())}


def compared(case: tuple[str, ...], old: dict[str, Any] | None, new: dict[str, Any] | None) -> Row:
    """The verdict on one case."""
    if old is None or new is None:
        return Row(*case, f"only in the {'new' if old is None else 'old'} version", "FAILS")
    errors = [f"{side}: {record['error']}" for side, record in (("old", old), ("new", new)) if record["error"]]
    if errors:
        return Row(*case, "; ".join(errors), "FAILS")
    if old["numbers"].keys() != new["numbers"].keys():
        names = sorted(old["numbers"].keys() ^ new["numbers"].keys())
        return Row(*case, f"only one version has {', '.join(names)}", "DIFFERS")
    if old["warnings"] != new["warnings"]:
        return Row(*case, f"old warned {old['messages']}, new {new['messages']}", "DIFFERS")
    if not new["numbers"]:
        return Row(*case, "no numbers", "FAILS")
    gap, name = max((difference(old["numbers"][n], new["numbers"][n]), n) for n in new["numbers"])
    tolerance = 0.0 if case[-1] == "Eager" else MAX_DIFFERENCE["single" if new["single"] else "double"]
    return Row(*case, f"{gap:.1e} in {name}" if gap else "equal", "same" if gap <= tolerance else "DIFFERS")


def difference(old: Any, new: Any) -> float:
    """Largest difference of two arrays relative to the largest magnitude in the old one or to 1; 0 only if they are equal."""
    a, b = (np.asarray(values, dtype=np.float64) for values in (old, new))
    if a.shape != b.shape:
        return np.inf
    if np.array_equal(a, b, equal_nan=True):
        return 0.0
    if not np.array_equal(np.isfinite(a), np.isfinite(b)) or not np.array_equal(a[~np.isfinite(a)], b[~np.isfinite(b)], True):
        return np.inf
    a, b = a[np.isfinite(a)], b[np.isfinite(b)]
    return float(np.abs(a - b).max() / max(1.0, np.abs(a).max()))


def table(rows: list[Row]) -> str:
    """The rows under their headings, each column as wide as its widest cell."""
    cells = [tuple(name.replace("_", " ") for name in Row._fields), *rows]
    widths = [max(len(row[column]) for row in cells) for column in range(3)]
    return "\n".join(
        f"{verdict:8}" + "  ".join(f"{cell:{width}}" for cell, width in zip(case, widths, strict=True)) + f"  {gap}"
        for *case, gap, verdict in cells
    )


def commit(checkout: Path) -> str:
    """The commit of a checkout, with "-dirty" if files have changed since."""
    command = ["git", "-C", str(checkout), "describe", "--always", "--dirty", "--abbrev=10"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() or f"{checkout}, of unknown commit"


if __name__ == "__main__":
    raise SystemExit(main())
