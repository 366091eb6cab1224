"""taut fit, taut evidence and taut gaps: their output, their files and their error messages."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

from guides import MLP, Amortized, MeanField
from inference.cli import app
from models import VAE, datasets

DIGITS = ["--data", "digits(binarised=True)", "--batch-size", "256", "--steps", "20"]


def run(*arguments, code=0):
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    assert result.exit_code == code, result.output
    return result.output


@pytest.mark.slow
def test_fit_writes_weights_and_pictures(tmp_path):
    text = run("fit", *DIGITS, "--model", "VAE(latents=2)", "--draws", "10", "--out", tmp_path / "out")
    for word in ("elbo", "reconstruction", "complexity", "VAE(latents=2) on digits(binarised=True)"):
        assert word in " ".join(text.split())
    folder = tmp_path / "out"
    assert len(pd.read_csv(folder / "nelbo.csv")) == 20
    for name in ("active-units", "prior-samples", "reconstructions", "traversals", "manifold"):
        assert (folder / f"{name}.png").stat().st_size > 1000
    x = datasets.digits(binarised=True).x.double()
    model = VAE((64,), 2).double()
    model.load_state_dict(torch.load(folder / "model.pt", weights_only=True))
    guide = Amortized(model, MeanField(), MLP())
    guide.setup(x)
    guide.load_state_dict(torch.load(folder / "guide.pt", weights_only=True))


def test_fit_shows_the_exact_evidence_where_there_is_one(tmp_path):
    text = run("fit", "--model", "FactorAnalysis", "--guide", "Local(MeanField)", "--steps", "10", "--out", tmp_path / "out")
    assert "log p(x), exact" in text


@pytest.mark.slow
def test_the_same_command_gives_the_same_numbers(tmp_path):
    tables = []
    for name in ("a", "b"):
        run("fit", *DIGITS, "--draws", "5", "--out", tmp_path / name)
        tables.append(pd.read_csv(tmp_path / name / "nelbo.csv").nelbo.to_numpy())
    np.testing.assert_array_equal(*tables)


@pytest.mark.parametrize("guide", ["Amortized(MeanField, MLP)", "Local(FullRank)", "AutoNormal"])
def test_evidence(guide):
    text = run(
        "evidence", "--model", "FactorAnalysis", "--guide", guide, "--steps", "10", "--draws", "50", "--rows", "20",
        "--temperatures", 0 if guide == "AutoNormal" else 3,
    )  # fmt: skip
    assert "IWAE, 50 draws" in text
    assert ("AIS, 3 temperatures" in text) == (guide != "AutoNormal")
    assert "exact" in text


@pytest.mark.slow
def test_gaps_has_a_row_for_each_guide(tmp_path):
    out = tmp_path / "out"
    run(
        "gaps", *DIGITS, "--guides", "Local(MeanField), Amortized(Flow, MLP), SemiAmortized(MeanField, Linear, steps=2)",
        "--rows", "15", "--ascent-steps", "5", "--draws", "10", "--evidence-draws", "20", "--out", out,
    )  # fmt: skip
    table = pd.read_csv(out / "gaps.csv")
    assert list(table.guide) == ["Local(MeanField)", "Amortized(Flow, MLP)", "SemiAmortized(MeanField, Linear, steps=2)"]
    total = table[["ELBO", "approximation", "amortization", "optimisation"]].sum(axis=1)
    np.testing.assert_allclose(table["log p(x)"], total, atol=1e-8)
    assert (out / "Local-MeanField.png").stat().st_size > 1000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fit", "--model", "VEA"], "did you mean VAE?"),
        (["fit", "--guide", "Local(MeanField), AutoNormal"], "--guide takes one value"),
        (["gaps", "--guides", "AutoNormal", "--steps", "2"], "gaps needs a guide of this suite"),
        (["fit", "--guide", "SemiAmortized(MeanField, MLP, steps=0)"], "without steps, use Amortized"),
        (["evidence", "--model", "VAE", "--data", "mnist(path='nowhere')"], "nowhere is not there"),
        (["evidence", "--temperatures", "1", "--steps", "2"], "temperatures must be at least 2"),
    ],
)
def test_bad_input(tmp_path, arguments, message):
    out = ["--out", tmp_path / "out"] if arguments[0] != "evidence" else []
    text = run(*arguments, *out, code=2)
    assert message in text
    assert "Traceback" not in text
    assert not (tmp_path / "out").exists()


def test_existing_results_are_refused(tmp_path):
    (tmp_path / "gaps.csv").write_text("mine")
    for command in ("fit", "gaps"):
        assert "--overwrite" in run(command, "--out", tmp_path, code=2)
    assert (tmp_path / "gaps.csv").read_text() == "mine"
    run("fit", "--model", "FactorAnalysis", "--guide", "Local(MeanField)", "--steps", "2", "--out", tmp_path, "--overwrite")
    assert not (tmp_path / "gaps.csv").exists()
    run("fit", "--model", "FactorAnalysis", "--guide", "Local(MeanField)", "--steps", "2", "--out", tmp_path, "--overwrite")
