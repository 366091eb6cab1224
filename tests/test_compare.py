"""The comparison table, its pictures and its files."""

from __future__ import annotations

import math

import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from problems import demo
from pyro.infer.autoguide import AutoMultivariateNormal, AutoNormal

from guides import Amortized, Delta, FullRank, Global, Linear, Local, LowRank, MeanField
from inference import NonFiniteLossError, best_elbo, compare, elbo, fit
from inference.cli.output import check_folder, save_comparison
from inference.engine import Eager
from models import FactorAnalysis, LinearRegression, ProbabilisticPCA

GUIDES = {
    "mean field": lambda m: Global(m, MeanField()),
    "low rank": lambda m: Global(m, LowRank(1)),
    "full rank": lambda m: Global(m, FullRank()),
    "AutoNormal": AutoNormal,
    "AutoMultivariateNormal": AutoMultivariateNormal,
}


@pytest.fixture(scope="module")
def regression():
    model, x = demo(LinearRegression)
    return model, x, compare(model, GUIDES, x, steps=800, lr=0.05, seeds=2)


def test_table(regression):
    model, x, result = regression
    table = result.to_frame().set_index("guide")
    assert list(table.index) == ["prior", *GUIDES, "exact posterior"]
    assert (table.evidence - model.log_evidence(x).item()).abs().max() < 1e-9
    assert ((table.gap - (table.evidence - table.elbo)).abs() < 1e-12).all()
    assert ((table.gap_per_datum * len(x) - table.gap).abs() < 1e-12).all()
    assert abs(table.gap["exact posterior"]) < 1e-9
    assert table.gap["prior"] == table.gap.max()
    assert (table.steps[list(GUIDES)] == 800).all()
    assert (table.seeds[list(GUIDES)] == 2).all()
    assert (table.seconds[list(GUIDES)] > 0).all()


def test_best_gap_is_the_gap_of_the_family(regression):
    model, x, result = regression
    table = result.to_frame().set_index("guide")
    optimum = (model.log_evidence(x) - best_elbo(model, MeanField(), x)).item()
    assert optimum > 0.5
    for name in ("mean field", "AutoNormal"):
        assert abs(table.best_gap[name] - optimum) < 1e-9
        assert abs(table.gap[name] - optimum) < 0.01 * len(x) + 5 * table.elbo_se[name]
    for name in ("full rank", "AutoMultivariateNormal"):
        assert abs(table.best_gap[name]) < 1e-9
        assert table.gap[name] < optimum / 2
    assert math.isnan(table.best_gap["low rank"])


def test_guides_share_seeds_and_workers_change_nothing():
    model, x = demo(LinearRegression)
    how = {"steps": 100, "lr": 0.05, "seeds": 2, "engine": Eager}
    many = compare(model, GUIDES, x, **how)
    again = compare(model, {"AutoNormal": AutoNormal}, x, **how, jobs=2)
    ours = [r.elbo for r in many.runs if r.guide == "AutoNormal"]
    assert [r.elbo for r in again.runs if r.fit] == ours
    assert ours[0] != ours[1]


def test_a_learned_model_has_an_evidence_for_each_run():
    _, x = demo(FactorAnalysis)
    model = ProbabilisticPCA(torch.nn.Parameter(torch.randn(6, 2).double()))
    before = model.loading.detach().clone()
    result = compare(model, {"amortized": lambda m: Amortized(m, FullRank(), Linear())}, x, steps=20, seeds=2)
    assert torch.equal(model.loading, before)
    fitted = [run for run in result.runs if run.fit]
    assert fitted[0].evidence != fitted[1].evidence
    assert all(run.evidence > model.log_evidence(x).sum() for run in fitted)
    assert list(result.to_frame().guide[[0, 2]]) == ["prior of the model as given", "exact posterior of the model as given"]


def test_without_truth():
    def model(x):
        h = pyro.sample("h", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(h.exp(), 1.0).expand(x.shape).to_event(1), obs=x)

    result = compare(model, {"AutoNormal": AutoNormal}, torch.ones(4), steps=20, seeds=1, draws=10)
    table = result.to_frame()
    assert list(table.guide) == ["prior", "AutoNormal"]
    assert table.evidence.isna().all()
    assert result.plot().axes


def test_plot_and_html(regression):
    result = regression[2]
    figure = result.plot()
    titles = [axis.get_title() for axis in figure.axes if axis.get_visible()]
    assert [title.split("\n")[0] for title in titles] == list(GUIDES)
    assert all("gap" in title for title in titles)
    html = result.to_html()
    assert all(name in html for name in GUIDES)


class TestFiles:
    def test_everything_is_written(self, regression, tmp_path):
        _, x, result = regression
        folder = tmp_path / "new" / "regression"
        save_comparison(result, x, folder, draws=5)
        names = {path.name for path in folder.iterdir()}
        assert names == {"table.csv", "runs.csv", "elbo.png", *(f"{name.replace(' ', '-')}.nc" for name in GUIDES)}
        read = pd.read_csv(folder / "table.csv")
        assert (read.elbo - result.to_frame().elbo).abs().max() < 1e-9
        assert len(pd.read_csv(folder / "runs.csv")) == 2 * len(GUIDES) + 2
        assert [path.name for path in folder.parent.iterdir()] == ["regression"]

    def test_existing_results_are_kept(self, regression, tmp_path):
        _, x, result = regression
        (tmp_path / "table.csv").write_text("precious")
        with pytest.raises(FileExistsError, match="--overwrite"):
            save_comparison(result, x, tmp_path, draws=5)
        assert (tmp_path / "table.csv").read_text() == "precious"
        (tmp_path / "thesis.txt").write_text("precious")
        with pytest.raises(FileExistsError, match=r"holds 'thesis.txt', which is not a result"):
            save_comparison(result, x, tmp_path, draws=5, overwrite=True)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["table.csv", "thesis.txt"]

    def test_every_guide_has_a_file(self, tmp_path):
        model, x = demo(LinearRegression)
        result = compare(model, dict.fromkeys(["a b", "a-b", "λ"], AutoNormal), x, steps=3, seeds=1, draws=5)
        save_comparison(result, x, tmp_path / "out", draws=3)
        assert {path.name for path in (tmp_path / "out").glob("*.nc")} == {"a-b.nc", "a-b-2.nc", "guide.nc"}

    def test_a_failure_leaves_nothing_behind(self, regression, tmp_path, monkeypatch):
        _, x, result = regression
        monkeypatch.setattr("inference.cli.output.to_arviz", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            save_comparison(result, x, tmp_path / "out", draws=5)
        assert not list(tmp_path.iterdir())

    def test_folders_that_cannot_be_written(self, tmp_path):
        (tmp_path / "file").touch()
        with pytest.raises(NotADirectoryError, match="is a file"):
            check_folder(tmp_path / "file" / "out")
        with pytest.raises(NotADirectoryError, match="is a file"):
            check_folder(tmp_path / "file")


@pytest.mark.parametrize(("changes", "message"), [({"seeds": 0}, "seeds"), ({"steps": 0}, "steps"), ({"jobs": 0}, "jobs")])
def test_bad_input(changes, message):
    model, x = demo(LinearRegression)
    with pytest.raises(ValueError, match=f"{message} must be at least 1"):
        compare(model, GUIDES, x, **changes)
    with pytest.raises(ValueError, match="no guides"):
        compare(model, {}, x)
    with pytest.raises(ValueError, match="draws must be at least 2"):
        compare(model, GUIDES, x, draws=1)
    with pytest.raises(ValueError, match="duplicate seeds"):
        compare(model, GUIDES, x, seeds=[1, 1])
    with pytest.raises(ValueError, match="name of a reference row"):
        compare(model, {"prior": AutoNormal}, x)


def test_a_failed_fit_is_reported_from_a_worker():
    model, x = demo(LinearRegression)
    with pytest.raises(NonFiniteLossError, match="step"):
        compare(model, {"full rank": GUIDES["full rank"]}, x, steps=50, lr=1e6, seeds=2, jobs=2)


def test_data_may_be_a_tuple():
    model, x = demo(LinearRegression)
    assert len(compare(model, {"AutoNormal": AutoNormal}, (x,), steps=3, seeds=1, draws=5).runs) == 3


def test_the_best_of_a_global_low_rank_is_unknown_for_local_latents():
    model, x = demo(FactorAnalysis)
    result = compare(model, {"g": lambda m: Global(m, LowRank(1))}, x, steps=3, seeds=1, draws=5)
    assert result.to_frame().set_index("guide").best_gap.isna()["g"]


def test_a_point_mass_has_a_row_and_no_curve():
    model, x = demo(LinearRegression)
    result = compare(model, {"map": lambda m: Global(m, Delta()), "AutoNormal": AutoNormal}, x, steps=3, seeds=1, draws=5)
    assert result.to_frame().set_index("guide").gap["map"] == math.inf
    assert [axis.get_title().split("\n")[0] for axis in result.plot().axes] == ["AutoNormal"]


def test_local_sources_share_one_optimum():
    model, x = demo(FactorAnalysis)
    result = compare(
        model,
        {"local": lambda m: Local(m, MeanField()), "amortized": lambda m: Amortized(m, MeanField(), Linear())},
        x,
        steps=10,
        seeds=1,
        draws=10,
    )
    best = result.to_frame().set_index("guide").best_gap
    assert best["local"] == best["amortized"] > 0.1


class TestRowsAreIndependent:
    """Every run starts from the same state and leaves it as it was: equal rows have equal numbers."""

    x = torch.randn(20, 4, generator=torch.Generator().manual_seed(0))

    def pair(self):
        """Nets of the enclosing scope, as in Pyro's tutorials, and one with a buffer that changes."""
        with torch.random.fork_rng():
            torch.manual_seed(0)
            decoder = torch.nn.Linear(2, 4)
            encoder = torch.nn.Sequential(torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 4))

        def model(x):
            pyro.module("decoder", decoder)
            with pyro.plate("data", len(x)):
                h = pyro.sample("h", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
                pyro.sample("x", dist.Normal(decoder(h), 0.5).to_event(1), obs=x)

        def guide(x):
            pyro.module("encoder", encoder)
            with pyro.plate("data", len(x)):
                out = encoder(x)
                pyro.sample("h", dist.Normal(out[:, :2], out[:, 2:].exp()).to_event(1))

        return model, guide, (*decoder.state_dict().values(), *encoder.state_dict().values())

    def test_nets_of_the_enclosing_scope(self):
        model, guide, state = self.pair()
        before = [value.clone() for value in state]
        result = compare(
            model, {name: lambda _: guide for name in "ab"}, self.x, steps=20, seeds=[3, 4], draws=10, engine=Eager
        )
        first, second = ([run.elbo for run in result.runs if run.guide == name] for name in "ab")
        assert first == second
        assert first[0] != first[1]
        assert first[0] > next(run.elbo for run in result.runs if run.guide == "prior") + 20.0
        for run in result.runs[1:]:
            assert elbo(run.fit.model, run.fit.guide, self.x, draws=10, seed=run.fit.seed).value == run.elbo
        assert all(torch.equal(a, b) for a, b in zip(before, state, strict=True))

    def test_a_guide_built_beforehand(self):
        def model(x):
            h = pyro.sample("h", dist.Normal(x.new_zeros(()), 1.0))
            with pyro.plate("data", len(x)):
                pyro.sample("x", dist.Normal(h, 1.0), obs=x[:, 0])

        guide = AutoNormal(model)
        result = compare(model, {name: lambda _: guide for name in "ab"}, self.x, steps=20, seeds=2, draws=20, engine=Eager)
        first, second = ([run.elbo for run in result.runs if run.guide == name] for name in "ab")
        assert first == second
        assert not list(guide.parameters())

    def test_a_tensor_that_pyro_param_takes_as_its_own(self):
        start = torch.tensor(0.1)

        def model(x):
            h = pyro.sample("h", dist.Normal(x.new_zeros(()), 1.0))
            with pyro.plate("data", len(x)):
                pyro.sample("x", dist.Normal(h, 1.0), obs=x[:, 0])

        def guide(x):
            pyro.sample("h", dist.Normal(pyro.param("loc", start), 0.2))

        result = compare(model, {name: lambda _: guide for name in "ab"}, self.x, steps=20, seeds=1, draws=20, engine=Eager)
        first, second = (next(run.elbo for run in result.runs if run.guide == name) for name in "ab")
        assert first == second
        assert start == 0.1

    def test_copies_leave_an_autoguide_its_model(self):
        def model(x):
            h = pyro.sample("h", dist.Normal(x.new_zeros(()), 1.0))
            pyro.sample("x", dist.Normal(h, 1.0).expand(x.shape).to_event(2), obs=x)

        guide = AutoNormal(model)
        own = guide.model
        done = fit(model, guide, self.x, steps=2, engine=Eager)
        assert guide.model is own
        assert done.guide.model is not None
