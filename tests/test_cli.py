"""The command line: its output, its files and its error messages."""

from __future__ import annotations

import pandas as pd
import pytest
from problems import FAMILIES, MODELS, SOURCES
from typer.testing import CliRunner

import inference.cli.compare
from inference import compare
from inference.cli import app

QUICK = ["--steps", "5", "--seeds", "1", "--draws", "10", "--jobs", "1"]


def run(*arguments, code=0):
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    assert result.exit_code == code, result.output
    return result.output


def test_help_explains():
    assert "log p(x) = ELBO + KL" in run("--help")
    text = run("compare", "--help")
    assert "taut compare --model FactorAnalysis" in text


def test_list_names_everything():
    text = run("list")
    for exported in (*MODELS, *SOURCES, *FAMILIES):
        assert exported.__name__ in text
    assert "AutoNormal" in text
    assert "diabetes" in text


def test_compare_writes_tables_pictures_and_draws(tmp_path):
    text = run(
        "compare", "--model", "FactorAnalysis", "--guides", "Local(LowRank(2)), Amortized(MeanField, MLP((3,))), AutoNormal",
        "--out", tmp_path / "out", *QUICK,
    )  # fmt: skip
    assert "log p(x) = " in text
    folder = tmp_path / "out" / "FactorAnalysis"
    table = pd.read_csv(folder / "table.csv")
    assert list(table.guide) == [
        "prior", "Local(LowRank(2))", "Amortized(MeanField, MLP((3,)))", "AutoNormal", "exact posterior"
    ]  # fmt: skip
    assert (folder / "elbo.png").stat().st_size > 1000
    assert (folder / "Local-LowRank-2.nc").exists()
    assert all(f"{gap:.3f}" in text for gap in table.gap[1:-1])


def test_every_problem_is_measured_with_the_draws_asked_for(tmp_path, monkeypatch):
    asked = []

    def counting(*args, draws, **kwargs):
        asked.append(draws)
        return compare(*args, draws=draws, **kwargs)

    monkeypatch.setattr(inference.cli.compare, "compare", counting)
    run("compare", "--guides", "AutoNormal", "--out", tmp_path, *QUICK)
    assert asked == [10, 10, 10]


@pytest.mark.parametrize("model", ["LinearRegression", "ProbabilisticPCA(factors=2)"])
def test_compare_on_data(tmp_path, model):
    run("compare", "--model", model, "--data", "diabetes", "--guides", "AutoNormal", "--out", tmp_path, *QUICK)
    assert len(list(tmp_path.glob("*/table.csv"))) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "FactorAnalsis"], "no model 'FactorAnalsis'; did you mean FactorAnalysis?"),
        (["--model", "LocalGaussian", "--guides", "Locl(MeanField)"], "no guide 'Locl'; did you mean Local?"),
        (
            ["--model", "LocalGaussian", "--guides", "Local(MeanFeld)"],
            "no family or encoder 'MeanFeld'; did you mean MeanField?",
        ),
        (["--model", "LocalGaussian", "--guides", "AutoNorml"], "did you mean AutoNormal?"),
        (["--model", "LinearRegression", "--data", "digts"], "no data set 'digts'; did you mean digits?"),
        (["--model", "LocalGaussian", "--guides", "Local"], "missing a required argument: 'family'"),
        (["--model", "LocalGaussian", "--guides", "Local(LowRank(rnk=2))"], "unexpected keyword argument 'rnk'"),
        (["--model", "LocalGaussian", "--guides", "Local(LowRank(0))"], "rank must be at least 1"),
        (["--model", "LocalGaussian", "--guides", "Local(Mean Field)"], "cannot read"),
        (["--model", "LocalGaussian", "--guides", "Local(LowRank(open))"], "'open' is not a number"),
        (["--model", "LocalGaussian", "--guides", "Local('x')"], "write Name, or Name(options)"),
        (["--model", "ProbabilisticPCA(factors=2)"], "give --data too"),
        (["--model", "ProbabilisticPCA(factors=99)", "--data", "diabetes(3)"], "diabetes(3): give options by name"),
        (["--data", "digits"], "--data needs --model"),
        (["--model", "LinearRegression", "--batch-size", "1000"], "batch_size must be between 1 and the 40 rows"),
        (["--model", "LinearRegression", "--lr", "-1"], "lr must be positive"),
        (["--model", "[/a]"], "[/a]"),
        (["--model", "ProbabilisticPCA(factors=99)", "--data", "diabetes"], "99 factors cannot be fitted"),
    ],
)
def test_bad_input(tmp_path, arguments, message):
    out = tmp_path / "out"
    text = run("compare", *arguments, "--out", out, *QUICK, code=2)
    assert message in text
    assert "Traceback" not in text
    assert not out.exists()


def test_numbers_out_of_range(tmp_path):
    for option in ("--seeds", "--steps", "--batch-size", "--jobs"):
        assert "greater than or equal to 1" in run(
            "compare", "--model", "LocalGaussian", option, "0", "--out", tmp_path / "o", code=2
        )


def test_existing_results_are_refused_before_any_work(tmp_path):
    arguments = ["compare", "--model", "GaussianMean", "--guides", "AutoNormal", "--out", tmp_path, *QUICK]
    run(*arguments)
    table = tmp_path / "GaussianMean" / "table.csv"
    table.write_text("mine")
    assert "--overwrite" in run(*arguments, code=2)
    assert table.read_text() == "mine"
    run(*arguments, "--overwrite")
    assert table.read_text() != "mine"


def test_out_is_a_file(tmp_path):
    (tmp_path / "file").touch()
    assert "is a file" in run("compare", "--model", "GaussianMean", "--out", tmp_path / "file", *QUICK, code=2)
