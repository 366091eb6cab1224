"""Objectives and optimisers as axes of the table, and the options of a fit at the command line."""

from __future__ import annotations

import inspect

import pandas as pd
import pytest
import torch
from problems import demo
from test_cli import run

from guides import FullRank, Global, MeanField
from inference import compare, fit, objectives, optimisers, stopping
from inference.cli import names
from inference.cli.output import save_comparison
from inference.engine import Eager
from inference.objectives import StickingTheLanding, TraceELBO
from inference.optimisers import FixedDraws, Solver
from inference.starting import FromPrior
from inference.stopping import Converged, MaxSeconds
from models import LinearRegression

GUIDES = {"full rank": lambda m: Global(m, FullRank())}


@pytest.fixture(scope="module")
def result():
    model, x = demo(LinearRegression)
    loud = {"one draw": TraceELBO(), "quiet": StickingTheLanding(4)}
    ways = {"Adam": torch.optim.Adam, "solver": FixedDraws()}
    return model, x, compare(model, GUIDES, x, objectives=loud, optimisers=ways, steps=60, lr=0.05, seeds=2, engine=Eager)


class TestCompare:
    def test_every_combination_has_a_row(self, result):
        table = result[2].to_frame()
        assert len(table) == 2 + 2 * 2
        assert list(table.columns[:3]) == ["guide", "objective", "optimiser"]
        fitted = table[table.seeds > 0]
        assert len(fitted[["guide", "objective", "optimiser"]].drop_duplicates()) == 4
        assert (fitted.seeds == 2).all()

    def test_each_row_is_that_fit(self, result):
        model, x, comparison = result
        (found,) = [r for r in comparison.runs if r.name == "full rank, quiet, Adam" and r.seed == 1]
        guide = Global(model, FullRank())
        again = fit(model, guide, x, objective=StickingTheLanding(4), steps=60, lr=0.05, seed=1, engine=Eager)
        assert torch.equal(found.fit.nelbo, again.nelbo)
        (other,) = [r for r in comparison.runs if r.name == "full rank, one draw, Adam" and r.seed == 1]
        assert not torch.equal(other.fit.nelbo, again.nelbo)

    def test_objectives_and_optimisers_change_the_gap(self, result):
        """The solver ends without noise, Adam with one draw a step has the most."""
        table = result[2].to_frame().set_index(["guide", "objective", "optimiser"])
        gap = table.loc["full rank"].gap
        assert gap["one draw", "solver"] < 0.02
        assert gap["one draw", "Adam"] > gap["one draw", "solver"]

    def test_files_and_picture(self, result, tmp_path):
        _, x, comparison = result
        save_comparison(comparison, x, tmp_path / "out", draws=5)
        assert {"objective", "optimiser", "stop", "distance"} <= set(pd.read_csv(tmp_path / "out" / "runs.csv").columns)
        assert (tmp_path / "out" / "full-rank-quiet-solver.nc").exists()

    def test_without_axes_there_are_no_columns(self):
        model, x = demo(LinearRegression)
        table = compare(model, GUIDES, x, steps=3, seeds=1, draws=5).to_frame()
        assert not {"objective", "optimiser"} & set(table.columns)

    @pytest.mark.slow
    def test_until_each_has_converged(self):
        model, x = demo(LinearRegression)
        guides = {**GUIDES, "mean field": lambda m: Global(m, MeanField())}
        result = compare(model, guides, x, steps=None, lr=None, seeds=1)
        fits = [run.fit for run in result.runs if run.fit]
        assert all(done.stop.converged for done in fits)
        table = result.to_frame().set_index("guide")
        assert all(table.gap[name] - table.best_gap[name] < 0.05 + 5 * table.elbo_se[name] for name in guides)

    def test_bad_input(self):
        model, x = demo(LinearRegression)
        with pytest.raises(ValueError, match="objectives needs at least one name"):
            compare(model, GUIDES, x, objectives={})
        with pytest.raises(ValueError, match="optimisers and optimiser are both given"):
            compare(model, GUIDES, x, optimisers={"a": torch.optim.Adam}, optimiser=torch.optim.SGD)


class TestNames:
    def test_everything_exported_has_one(self):
        concrete = {n for n in objectives.__all__ if hasattr(getattr(objectives, n), "estimates_elbo")}
        assert set(names.OBJECTIVES) == concrete
        assert len(concrete) > 8
        classes = {n: getattr(optimisers, n) for n in optimisers.__all__ if inspect.isclass(getattr(optimisers, n))}
        solvers = {n for n, cls in classes.items() if issubclass(cls, Solver) and not inspect.isabstract(cls)}
        assert solvers <= set(names.OPTIMISERS)
        assert {"Adam", "SGD"} <= set(names.OPTIMISERS)
        assert not {"Optimizer", "LBFGS"} & set(names.OPTIMISERS), "fit refuses these"
        assert {"Converged", "Plateau", "MaxSteps", "MaxSeconds"} == set(names.RULES)
        assert set(names.RULES) < set(stopping.__all__)
        assert set(names.STARTS) == {"FromInit", "FromPathfinder", "FromPrior"}, "starts that need neither draws nor a guide"

    def test_parse(self):
        assert names.parse_objectives("TraceELBO, StickingTheLanding(8)") == {
            "TraceELBO": TraceELBO(),
            "StickingTheLanding(8)": StickingTheLanding(8),
        }
        assert names.parse_rules("Converged(tolerance=0.1), MaxSeconds(60)") == [Converged(tolerance=0.1), MaxSeconds(60)]
        assert names.parse_start("FromPrior(draws=7)") == FromPrior(7)
        made = names.parse_optimisers("SGD(momentum=0.9), FixedDraws(draws=8)")
        assert made["FixedDraws(draws=8)"] == FixedDraws(draws=8)
        weight = torch.nn.Parameter(torch.zeros(1))
        assert made["SGD(momentum=0.9)"]([weight], lr=0.1).defaults["momentum"] == 0.9

    @pytest.mark.parametrize(
        ("parse", "text", "message"),
        [
            (names.parse_objectives, "TraceELB", "no objective 'TraceELB'; did you mean TraceELBO"),
            (names.parse_optimisers, "Adan", "no optimiser 'Adan'; did you mean Adam"),
            (names.parse_optimisers, "Adam(0.1)", "give options by name"),
            (names.parse_rules, "Converged(tol=1)", "the signature is Converged"),
            (names.parse_start, "FromGuide", "no start 'FromGuide'"),
        ],
    )
    def test_unknown_names_are_refused(self, parse, text, message):
        with pytest.raises(names.UsageError, match=message):
            parse(text)


class TestCommandLine:
    def test_list(self):
        text = run("list")
        for name in ("StickingTheLanding", "FixedDraws", "Converged", "FromPrior"):
            assert name in text

    def test_compare(self, tmp_path):
        text = run(
            "compare", "--model", "LinearRegression", "--guides", "Global(MeanField)", "--objectives",
            "TraceELBO, StickingTheLanding(2)", "--optimisers", "Adam, SGD(momentum=0.5)", "--steps", 5, "--lr", 0.001,
            "--seeds", 1, "--draws", 10, "--jobs", 1, "--restarts", 1, "--start", "FromPrior", "--out", tmp_path,
        )  # fmt: skip
        table = pd.read_csv(tmp_path / "LinearRegression" / "table.csv")
        assert list(table.objective[1:5]) == ["TraceELBO", "TraceELBO", "StickingTheLanding(2)", "StickingTheLanding(2)"]
        assert list(table.optimiser[1:5]) == ["Adam", "SGD(momentum=0.5)"] * 2
        assert "objective" in text

    @pytest.mark.slow
    def test_fit_until_it_has_converged(self, tmp_path):
        text = run(
            "fit", "--model", "GaussianMean", "--guide", "Global(MeanField)", "--stop",
            "Converged(tolerance=0.05), MaxSeconds(60)", "--out", tmp_path / "out",
        )  # fmt: skip
        assert "Stopping reason: KL to the best is an estimated" in " ".join(text.split())

    def test_fit_by_a_solver_and_by_seconds(self, tmp_path):
        options = ["fit", "--model", "GaussianMean", "--guide", "Global(FullRank)"]
        text = run(*options, "--optimiser", "FixedDraws", "--out", tmp_path / "a")
        assert "FixedDraws met its own tolerance" in " ".join(text.split())
        text = run(*options, "--objective", "StickingTheLanding(2)", "--stop", "MaxSeconds(0.3)", "--out", tmp_path / "b")
        assert "took the 0.3 seconds it was given" in " ".join(text.split())

    def test_two_objectives_are_refused(self, tmp_path):
        options = ["fit", "--model", "GaussianMean", "--guide", "Global(FullRank)", "--out", tmp_path / "a"]
        assert "--objective takes one" in run(*options, "--objective", "TraceELBO, TraceELBO(2)", code=2)
