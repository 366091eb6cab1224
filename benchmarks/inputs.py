"""Calls every public function and every command with generated inputs, and counts the kinds of outcome.

python benchmarks/inputs.py --inputs 20000 --write docs/reliability.md

Each input is a call whose arguments are right except for one or two, which are drawn from values of all kinds. It may end in
four ways that are faults: an answer that is not finite, or bad input taken (silent); an error in the words of torch, Pyro or
Python (obscure); and a call that does not end (hang). Functions are found by the lists `__all__`,
commands by the application.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import inspect
import io
import re
import signal
import sys
import tempfile
import time
import traceback
import typing
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import is_dataclass
from functools import cache
from math import isfinite
from pathlib import Path
from typing import Any, NamedTuple
from zlib import crc32

import hypothesis
import torch
import typer
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from input_calls import KINDS, PACKAGES, Subject, subjects
from input_values import NAMED, fits
from torch import Tensor
from typer.testing import CliRunner

import inference
from inference.cli import app
from inference.cli.names import UsageError

__all__ = ["OUTCOMES", "Outcome", "command_outcomes", "function_outcomes", "subjects"]

OUTCOMES = ("right", "refused", "obscure", "silent", "hang")
LIMIT = 120
"""Seconds after which a call counts as a hang."""


class Outcome(NamedTuple):
    """How one call ended."""

    kind: str
    subject: str
    given: str
    """The arguments that were replaced."""
    detail: str


class _HangError(BaseException):
    pass


MAY_BE_NAN = {
    "Stop.distance", "Run.best", "Run.evidence", "Run.elbo", "Verdict.ess", "Verdict.khat", "Evidence.khat", "Evidence.se",
    "Importance.khat",
    "Importance.khat_per_datum", "Bounds.divergence", "Bounds.mean", "Bounds.sd", "Estimator.squared_bias",
    "Estimator.squared_bias_se", "LOO.khat", "quantities", "kl", "psis", "Coverage.share", "Scalars.draws",
}  # fmt: skip
"""Fields whose documentation says when they are NaN or infinite."""


def numbers_in(value: Any, path: str = "", depth: int = 0) -> Iterator[tuple[str, Any]]:
    """The numbers in a result, each with the field that holds it."""
    if isinstance(value, float | Tensor):
        yield path, value
    elif depth > 4 or isinstance(value, str | torch.nn.Module) or callable(value):
        return
    elif hasattr(value, "_asdict"):
        for name, member in value._asdict().items():
            yield from numbers_in(member, f"{type(value).__name__}.{name}", depth + 1)
    elif is_dataclass(value):
        for name in value.__dataclass_fields__:
            yield from numbers_in(getattr(value, name), f"{type(value).__name__}.{name}", depth + 1)
    elif isinstance(value, Mapping):
        for member in value.values():
            yield from numbers_in(member, path, depth + 1)
    elif isinstance(value, list | tuple):
        for member in value:
            yield from numbers_in(member, path, depth + 1)


def not_finite(result: Any, name: str) -> str | None:
    """The first field of a result with a number that is not finite and not documented to be so."""
    for path, value in numbers_in(result, name):
        fine = (
            value.isfinite().all()
            if isinstance(value, Tensor) and value.numel()
            else isfinite(value)
            if isinstance(value, float)
            else True
        )
        if not fine and path not in MAY_BE_NAN:
            return path or "the result"
    return None


@cache
def raises_of(file: str) -> tuple[tuple[int, int], ...]:
    """The lines of each `raise` in a module."""
    tree = ast.parse(Path(file).read_text())
    return tuple((n.lineno, n.end_lineno or n.lineno) for n in ast.walk(tree) if isinstance(n, ast.Raise))


def ours(error: BaseException) -> bool:
    """Whether the error was raised by a statement of the library, rather than by what it calls."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    remote = re.findall(r'File "(.+?)", line (\d+)', str(getattr(error.__cause__, "tb", "")))
    if remote:  # an error of another process carries its trace as a text
        last = traceback.FrameSummary(remote[-1][0], int(remote[-1][1]), "")
    root = Path(inference.__file__).parent.parent
    inside = any(Path(last.filename).is_relative_to(root / package) for package in PACKAGES)
    line = last.lineno or 0
    return inside and any(first <= line <= end for first, end in raises_of(last.filename))


@contextlib.contextmanager
def time_limit() -> Iterator[None]:
    def stop(*_: Any) -> None:
        raise _HangError

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, LIMIT)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def called(subject: Subject, kind: str, changes: Mapping[str, str]) -> Outcome:
    """The outcome of one call in which some arguments are replaced by values of `NAMED`."""
    values = {name: NAMED[value]() for name, value in changes.items()}
    label = ", ".join(f"{name} = {value}" for name, value in changes.items())
    silent = io.StringIO()
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(silent), contextlib.redirect_stdout(silent), time_limit():
            warnings.simplefilter("ignore")
            result = subject.call(subject.right(kind) | values)
            if inspect.isgenerator(result):
                list(result)
    except _HangError:
        return Outcome("hang", subject.name, label, kind)
    except Exception as error:
        text = f"{type(error).__name__}: {str(error)[:160]}"
        named = [name for name in changes if name.rstrip("s") in str(error)] or subject.name in str(error)
        refusal = ours(error) and (named or isinstance(error, ValueError | TypeError | RuntimeError | OSError | ImportError))
        where = traceback.extract_tb(error.__traceback__)[-1]
        at = f" ({Path(where.filename).name}:{where.lineno}; {kind})"
        return Outcome("refused" if refusal else "obscure", subject.name, label, text + ("" if refusal else at))
    hints = hints_of(subject.function)
    wrong = [name for name, value in values.items() if name in hints and not fits(hints[name], value, subject.learns)]
    if wrong:
        return Outcome("silent", subject.name, label, f"takes a bad {wrong[0]} ({kind})")
    if (path := not_finite(result, subject.name)) is not None:
        return Outcome("silent", subject.name, label, f"{path} is not finite ({kind})")
    return Outcome("right", subject.name, label, "")


@cache
def hints_of(function: Any) -> dict[str, Any]:
    return typing.get_type_hints(
        function.__init__ if inspect.isclass(function) and not hasattr(function, "_fields") else function
    )


def calls(subject: Subject) -> st.SearchStrategy[tuple[str, dict[str, str]]]:
    """Strategy for the kind of pair and the one or two arguments to replace."""
    names = [*subject.options, *([subject.several] if subject.several else [])]
    kinds = st.sampled_from(KINDS[subject.name])
    if not names:
        return st.tuples(kinds, st.just({}))
    hints = hints_of(subject.function)
    pairs = []
    for name in names:
        apt = [value for value in sorted(NAMED) if fits(hints.get(name, Any), NAMED[value](), subject.learns)]
        anything = st.sampled_from(sorted(NAMED))
        value = anything | st.sampled_from(apt) | st.sampled_from(apt) if apt else anything
        pairs.append(st.tuples(st.just(name), value))
    return st.tuples(kinds, st.lists(st.one_of(pairs), min_size=1, max_size=2, unique_by=lambda drawn: drawn[0]).map(dict))


def function_outcomes(total: int, seed: int, only: str | None = None, jobs: int = 1) -> list[Outcome]:
    """Outcomes of `total` calls, shared out to the functions by the time that a call takes and the number of arguments.

    Raises:
        AssertionError: if a call with right arguments fails, so that nothing would be learned from the others.
    """
    chosen = [subject for subject in subjects() if only is None or re.fullmatch(only, subject.name)]
    for subject in chosen:
        seconds = 0.0
        for kind in KINDS[subject.name]:
            begin = time.perf_counter()
            first = called(subject, kind, {})
            seconds = time.perf_counter() - begin
            assert first.kind == "right" or "NotConverged" in first.detail or "install" in first.detail, (
                f"the right call fails: {first}"
            )
        work = 3 if inspect.isfunction(subject.function) else 1
        subject.weight = work * len(subject.options) ** 0.5 * min(1.0, max(0.05, 0.05 / max(seconds, 1e-3)))
    whole = sum(subject.weight for subject in chosen)
    tasks = [(subjects().index(one), max(1, round(total * one.weight / whole)), seed) for one in chosen]
    if jobs == 1:
        return [outcome for task in tasks for outcome in outcomes_of(*task)]
    with ProcessPoolExecutor(jobs) as pool:
        return [outcome for part in pool.map(outcomes_of, *zip(*tasks, strict=True)) for outcome in part]


def outcomes_of(position: int, count: int, seed: int) -> list[Outcome]:
    """Outcomes of `count` calls of the function at `position` in `subjects`, in any process."""
    subject, found = subjects()[position], list[Outcome]()
    generate(calls(subject), count, seed + crc32(subject.name.encode()), lambda drawn: found.append(called(subject, *drawn)))
    return found


def generate(strategy: st.SearchStrategy[Any], count: int, seed: int, use: Callable[[Any], None]) -> None:
    """Calls `use` with `count` examples of a strategy."""
    done = 0
    while done < count:
        drawn: list[Any] = []

        @hypothesis.seed(seed + 7919 * done)
        @settings(
            max_examples=min(count - done, 500), phases=[Phase.generate], database=None, deadline=None,
            suppress_health_check=list(HealthCheck),
        )  # fmt: skip
        @given(strategy)
        def collect(example: Any) -> None:
            drawn.append(example)  # noqa: B023 (called in this turn of the loop)

        collect()
        for example in drawn[: count - done]:
            use(example)
        if not drawn:
            return
        done += len(drawn)


OPTION_VALUES = (
    *("", "a", "0", "1", "-1", "2", "1.5", "nan", "inf", "-inf", "1e400", "99999999999999999999", "True", "None", " ", "3 "),
    *(
        "MeanField",
        "Local(MeanField)",
        "Global(MeanField)",
        "Global(LowRank(2))",
        "Global(LowRank(1.5))",
        "Global(LowRank(-1))",
    ),
    *("Global(MeanField(scale=0))", "Global(MeanField(scale='a'))", "Global(MeanField, MeanField)", "Global()", "Global"),
    *("Global(**x)", "Global(*x)", "Global(MeanField, **{})", "Global(MeanField", "Global(MeanField))", "Global(MeanField)()"),
    *("Global(MeanField, plate=3)", "Global(Nothing)", "Global(FullRank(scale=nan))", "Global(LowRank(True))", "Prior"),
    *("AutoNormal", "AutoNormal(init_scale=-1)", "AutoNormal(init_scale='a')", "AutoDelta", "AutoNormal, AutoNormal", ","),
    *(
        "Amortized(MeanField, MLP((8,)))",
        "Amortized(MeanField, MLP(8))",
        "Amortized(MeanField, MLP((0,)))",
        "lambda: 1",
        "[1]",
    ),
    *("GaussianMean", "LocalGaussian", "GaussianMean(dim=2)", "GaussianMean(3)", "NoModel", "EightSchools", "gaussianmean"),
    *("digits", "diabetes", "digits(binarised=True)", "digits(scaled='a')", "digits(1)", "Digits", "mnist(path='nowhere')"),
    *("TraceELBO", "TraceELBO(0)", "TraceELBO(1.5)", "TraceELBO(draws=-3)", "IWAE(2)", "AnalyticELBO", "ScoreFunction(1)"),
    *("Renyi(alpha=1)", "Renyi(alpha='a')", "TraceELBO, IWAE"),
    *("Adam", "SGD(momentum=0.9)", "SGD(momentum=-1)", "SGD(momentum='a')", "Adam(lr=2)", "Adam(3)", "FixedDraws", "LBFGS"),
    *("FixedDraws(draws=1)", "Adam(betas=3)", "Adam(betas=(0.5, 2))", "Adam, SGD", "DoG", "NaturalGradient(tolerance=0)"),
    *("Converged", "MaxSteps(2)", "MaxSteps(1.5)", "MaxSteps(0)", "MaxSeconds('a')", "MaxSeconds(nan)", "Plateau(least=3)"),
    *("MaxSteps", "MaxSteps(2), MaxSeconds(1)", "When(3)", "FromPrior", "FromInit", "FromPrior(draws=1)", "FromDraws"),
    *("FromInit(function=3)", "FromInit, FromPrior", "ü", "\x00", "(", "()", "((((((", "1" * 500, "Global(" * 200, "-" * 50),
)
"""Values for options of the command line, right and wrong."""
COMMANDS: dict[str, dict[str, str]] = {
    "compare": {"--model": "GaussianMean", "--guides": "Global(MeanField)", "--steps": "2", "--seeds": "1", "--draws": "4",
                "--jobs": "1"},
    "fit": {"--model": "GaussianMean", "--guide": "Global(MeanField)", "--steps": "2", "--draws": "4"},
    "evidence": {"--model": "GaussianMean", "--guide": "Global(MeanField)", "--steps": "2", "--draws": "4", "--rows": "5"},
    "gaps": {"--model": "LocalGaussian", "--guides": "Local(MeanField)", "--steps": "2", "--draws": "4", "--rows": "5",
             "--ascent-steps": "2", "--evidence-draws": "4", "--jobs": "1"},
    "trust": {"--model": "GaussianMean", "--guide": "Global(MeanField)", "--steps": "2", "--draws": "500"},
    "list": {},
}  # fmt: skip


def options_of(command: str) -> list[str]:
    """The options of a command, from the application itself."""
    import typer.main

    found = typer.main.get_command(app).commands[command].params  # type: ignore[attr-defined]
    return sorted(option.opts[0] for option in found if option.opts[0] not in ("--help", "--out"))


DOCUMENTED = r"(k̂ (= )?|draws |complexity )(–|inf)"
"""Infinite numbers that the commands explain: k̂ of weights in which one draw dominates, and KL of a point mass."""


def command_outcome(command: str, changes: Mapping[str, str], out: Path) -> Outcome:
    """The outcome of one command in which some options are replaced."""
    right = COMMANDS[command] | dict(changes)
    words = [word for name, value in right.items() for word in ([name] if name == "--overwrite" else [name, value])]
    if "--out" in _out(command):
        words += ["--out", str(out), *([] if "--overwrite" in right else ["--overwrite"])]
    label = " ".join(f"{name}={value!r}" for name, value in changes.items())
    try:
        with warnings.catch_warnings(), time_limit():
            warnings.simplefilter("ignore")
            result = CliRunner().invoke(app, [command, *words])
    except _HangError:
        return Outcome("hang", f"taut {command}", label, "")
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        error = result.exception
        where = traceback.extract_tb(error.__traceback__)[-1]
        kind = "hang" if isinstance(error, _HangError) else "obscure"
        detail = f"{type(error).__name__}: {str(error)[:160]} ({Path(where.filename).name}:{where.lineno})"
        return Outcome(kind, f"taut {command}", label, detail)
    text = " ".join(result.output.split())
    if result.exit_code:
        cause: BaseException | None = result.exception
        while isinstance(cause, SystemExit | typer.Exit):
            cause = cause.__context__
        known = cause is None or isinstance(cause, UsageError) or ours(cause)
        clear = "Usage" in text or ("rror" in text and known)
        return Outcome("refused" if clear else "obscure", f"taut {command}", label, text[-160:])
    # The table of `trust` explains an infinite k̂, in cells whose lines are folded.
    odd = "nan" if command == "trust" else "nan|inf"
    if re.search(rf"(?<![\w-])({odd})(?!\w)", re.sub(DOCUMENTED, "", text)):
        return Outcome("silent", f"taut {command}", label, text[:300])
    return Outcome("right", f"taut {command}", label, "")


def _out(command: str) -> list[str]:
    import typer.main

    return [option.opts[0] for option in typer.main.get_command(app).commands[command].params]  # type: ignore[attr-defined]


def _right_values(option: str) -> st.SearchStrategy[str]:
    """Strategy for values that an option may take."""
    counts = ("1", "2", "5")
    known = {
        "--model": ("GaussianMean", "LocalGaussian", "EightSchools", "BetaBernoulli", "Funnel"),
        "--guide": ("Prior", "Global(FullRank)", "AutoNormal", "Global(LowRank(2))", "Local(MeanField)", "AutoDelta"),
        "--guides": ("Global(FullRank)", "AutoNormal, Global(MeanField)", "Local(MeanField), Local(FullRank)", "AutoDelta"),
        "--objective": ("TraceELBO", "StickingTheLanding(8)", "IWAE(5)", "ScoreFunction", "AnalyticELBO"),
        "--objectives": ("TraceELBO, IWAE(2)", "ScoreFunction"),
        "--optimiser": ("Adam", "SGD(momentum=0.9)", "DoG", "FixedDraws", "NaturalGradient"),
        "--optimisers": ("Adam, DoG", "FixedDraws"),
        "--stop": ("MaxSteps(3)", "MaxSeconds(0.1)", "MaxSteps(2), MaxSeconds(1)"),
        "--start": ("FromPrior", "FromInit"),
        "--lr": ("0.1", "1e-3", "1e10"),
        "--data": ("diabetes",),
        "--seed": ("0", "7", "9223372036854775807"),
        "--overwrite": ("",),
    }
    return st.sampled_from(known.get(option, counts))


def command_outcomes(total: int, seed: int) -> list[Outcome]:
    """Outcomes of `total` command lines."""
    found: list[Outcome] = []
    with tempfile.TemporaryDirectory() as folder:
        for command in COMMANDS:
            names = options_of(command)
            if not names:
                found.append(command_outcome(command, {}, Path(folder)))
                continue
            pairs = [st.tuples(st.just(name), st.sampled_from(OPTION_VALUES) | _right_values(name)) for name in names]
            one = st.lists(st.one_of(pairs), min_size=1, max_size=2, unique_by=lambda drawn: drawn[0]).map(dict)
            use = lambda drawn, command=command: found.append(command_outcome(command, drawn, Path(folder, command)))  # noqa: E731
            generate(one, total // (len(COMMANDS) - 1), seed, use)
    return found


def table(found: list[Outcome]) -> str:
    """A table in Markdown: one row for each function and command."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for outcome in found:
        counts[outcome.subject][outcome.kind] += 1
    lines = ["| function | inputs | " + " | ".join(OUTCOMES) + " |", "|---|" + "---|" * (1 + len(OUTCOMES))]
    whole: Counter[str] = sum(counts.values(), Counter())
    for name, each in [("**all**", whole), *sorted(counts.items())]:
        cells = " | ".join(str(each[kind]) for kind in OUTCOMES)
        lines.append(f"| {name if name.startswith('*') else f'`{name}`'} | {each.total()} | {cells} |")
    return "\n".join(lines)


def main() -> None:
    from results import environment

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=20_000, help="calls of functions")
    parser.add_argument("--commands", type=int, default=1500, help="command lines")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1, help="processes that share the functions")
    parser.add_argument("--only", help="a pattern for the names of functions")
    parser.add_argument("--write", type=Path, help="the document whose table is replaced")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    found = function_outcomes(chosen.inputs, chosen.seed, chosen.only, chosen.jobs) if chosen.inputs else []
    found += command_outcomes(chosen.commands, chosen.seed) if chosen.commands else []
    examples: dict[tuple[str, ...], list[Outcome]] = defaultdict(list)
    for outcome in found:
        if outcome.kind not in ("right", "refused"):
            examples[outcome.kind, outcome.subject, re.sub(r"[\d.]+", "#", outcome.detail)[:90]].append(outcome)
    for (kind, subject, _), same in sorted(examples.items(), key=lambda item: (item[0][0], -len(item[1]))):
        print(f"{len(same):4} {kind} {subject}({same[0].given}): {same[0].detail}", file=sys.stderr)
    text = f"{table(found)}\n\nSeed {chosen.seed}, hypothesis {hypothesis.__version__}. {environment()}"
    print(text)
    if chosen.write is not None:
        begin, end = "<!-- inputs.py -->", "<!-- /inputs.py -->"
        old = chosen.write.read_text()
        chosen.write.write_text(old[: old.index(begin) + len(begin)] + f"\n{text}\n" + old[old.index(end) :])


if __name__ == "__main__":
    main()
