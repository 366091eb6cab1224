"""The application `taut`, how it reports errors, and the command that lists all names."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from inspect import getdoc
from typing import Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ..fitting.divergence import DivergedError
from ..fitting.fit import NonFiniteLossError
from ..programs.validation import raised_here
from . import names

__all__ = ["app", "console", "reporting_errors"]

FILE_WIDTH = 110
"""Width of a line, in characters, when the output is not a terminal."""

app = typer.Typer(no_args_is_help=True, add_completion=False, rich_markup_mode="markdown", pretty_exceptions_enable=False)
console = Console(width=None if sys.stdout.isatty() else FILE_WIDTH)
errors = Console(stderr=True)


@app.callback()
def taut() -> None:
    """How tight is a variational bound?

    A **model** is p(x, h) = p(x|h) p(h). A **guide** q(h|x) approximates its posterior p(h|x). Since

        log p(x) = ELBO + KL(q(h|x) ‖ p(h|x))

    the gap log p(x) − ELBO measures how wrong the guide is. `taut list` shows all names; `taut compare` measures the gap.
    """


@app.command("list")
def list_names() -> None:
    """Lists the models, guides, data sets and fitting methods by the names that the other commands take."""
    for title, known in (
        ("models: --model", names.MODELS),
        ("guides: --guide or --guides, as Source(Family) or Source(Family, Encoder)", names.SOURCES),
        ("families", names.FAMILIES),
        ("encoders, for Amortized", names.ENCODERS),
        ("data sets: --data", names.DATASETS),
        ("objectives: --objective, or --objectives to compare several", names.OBJECTIVES),
        (
            "optimisers: --optimiser, or --optimisers to compare several; torch's optimisers and these solvers",
            {name: value for name, value in names.OPTIMISERS.items() if name in names.SOLVERS},
        ),
        ("stopping rules: --stop", names.RULES),
        ("initial values: --start", names.STARTS),
    ):
        table = Table(title=title, title_justify="left", show_header=False, box=None, padding=(0, 2, 0, 0))
        for name, value in known.items():
            table.add_row(f"[bold]{name}[/bold]", _first_sentence(value))
        console.print(table, "")
    console.print(f"Pyro's autoguides, also for --guide and --guides\n{', '.join(names.AUTOGUIDES)}", highlight=False)


@contextmanager
def reporting_errors() -> Iterator[None]:
    """Prints the message of an expected error without its traceback. Exit code 2 for bad input, 1 for a failed fit."""
    try:
        yield
    except (DivergedError, NonFiniteLossError, RuntimeError, TypeError, ValueError, OSError) as error:
        if isinstance(error, RuntimeError) and not raised_here(error):
            raise
        errors.print(f"[bold red]error:[/bold red] {escape(str(error))}", highlight=False, soft_wrap=True)
        raise typer.Exit(1 if isinstance(error, DivergedError | NonFiniteLossError) else 2) from None


def _first_sentence(value: Any) -> str:
    return re.split(r"(?<=[.:])\s", " ".join((getdoc(value) or "").split()), maxsplit=1)[0].rstrip(":")
